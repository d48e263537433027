"""The redirection of one pod: look, mend what differs, remove.

Each function works in the network namespace of the thread that calls it, and
leaves nothing open.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from socket import NETLINK_ROUTE

from nodeagent.linux.netlink import Netlink
from nodeagent.netfilter.errors import RulesError, wrap_oserror
from nodeagent.redirect.backend import Backends
from nodeagent.redirect.reply_path import Plan, add_entry, mark_entry, plan, removable, remove_entry
from nodeagent.redirect.rules import RedirectSpec

NFTABLES = Backends.choose(None)
"""What every node has unless its settings say otherwise."""


def inspect(spec: RedirectSpec, backends: Backends = NFTABLES) -> tuple[str, ...]:
    """Say what differs from `spec`; empty where all is as intended. Raises `RulesError`."""
    with _routing() as netlink:
        routing = plan(netlink, spec)
    return (
        *routing.conflicts,
        *(f"{entry} is missing" for entry in routing.missing),
        *backends.chosen.inspect(spec),
        *backends.leftovers(),
        *(f"{entry} is there twice" for entry in routing.twice),
        *(f"{entry} is not wanted" for entry in routing.unwanted),
    )


def ensure(
    spec: RedirectSpec, backends: Backends = NFTABLES, *, rules_are_right: bool = False
) -> tuple[str, ...]:
    """Make `spec` true; return what differed before, empty where nothing was touched.

    What other backends have left is `Backends.sweep`'s matter. Rules that `rules_are_right`
    vouches for are not read again, routes are. The way for replies comes before the rules
    that make them need it, and goes after them. But the rules do not wait for it: where a
    route cannot be had, because `lo` is down, say, or where the routing cannot be read,
    the pod fails closed. Raises `RulesError`.
    """
    mended: list[str] = []
    refused: RulesError | None = None
    with _routing() as netlink:
        try:
            routing = plan(netlink, spec)
        except RulesError as error:
            routing, refused = Plan(), error
        if routing.conflicts:
            refused = RulesError("; ".join(routing.conflicts))
        for entry in routing.missing:
            mended.append(f"{entry} is missing")
            try:
                add_entry(netlink, entry)
            except RulesError as error:
                refused = error
        if not rules_are_right:
            mended += backends.chosen.ensure(spec)
        if refused:
            raise refused
        for entry in (*routing.twice, *routing.unwanted):
            remove_entry(netlink, entry)
            mended.append(f"{entry} is {'there twice' if entry in routing.twice else 'not wanted'}")
    return tuple(mended)


def stands(backends: Backends = NFTABLES) -> bool:
    """Whether rules of ours stand, whatever they were made for. Raises `RulesError`."""
    return backends.chosen.stands() or bool(backends.leftovers())


def remove(backends: Backends = NFTABLES) -> tuple[str, ...]:
    """Remove everything of ours, whatever it was made for; return what was removed, in words.

    Rules of ours or Istio's prove whose the routes are, so these are marked before the
    rules go, and go last. What cannot be looked at does not keep the rest. But where rules
    stand that cannot be removed, the routes that they need stay, too, and `RulesError`
    is raised: as long as ztunnel serves the pod, its traffic goes through.
    """
    with _routing() as netlink:
        routes = removable(netlink, proven=stands(backends))
        routes = tuple(mark_entry(netlink, entry) for entry in routes)
        removed = (f"rules in {backends.chosen}",) if backends.chosen.remove() else ()
        swept = backends.sweep()
        if swept.left:
            raise RulesError("; ".join(swept.left))
        for entry in routes:
            remove_entry(netlink, entry)
    return (*removed, *swept.removed, *map(str, routes))


@contextmanager
def _routing() -> Iterator[Netlink]:
    with wrap_oserror("open a routing socket"):
        netlink = Netlink(NETLINK_ROUTE)
    with netlink:
        yield netlink
