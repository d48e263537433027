"""Rules and routes of one pod together: inspect, ensure, remove.

Each function works in the netns of the thread that calls it, and leaves nothing open. The
policy rule and the route for replies are made before the rules that need them, and removed
after them.
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
    """Say what differs from `spec`; empty where nothing does. Raises `RulesError`."""
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
    """Make `spec` true; return what differed before, empty where nothing was written.

    With `rules_are_right` the rules are not read again, routes always are. What other
    backends have left is not removed: see `Backends.sweep`. Where a route cannot be had,
    because `lo` is down, say, or where the routing cannot be read, the rules are written
    all the same, so that the pod's traffic fails rather than bypasses ztunnel, and
    `RulesError` is raised in the end.
    """
    differed: list[str] = []
    refused: RulesError | None = None
    with _routing() as netlink:
        try:
            routing = plan(netlink, spec)
        except RulesError as error:
            routing, refused = Plan(), error
        if routing.conflicts:
            refused = RulesError("; ".join(routing.conflicts))
        for entry in routing.missing:
            differed.append(f"{entry} is missing")
            try:
                add_entry(netlink, entry)
            except RulesError as error:
                refused = error
        if not rules_are_right:
            differed += backends.chosen.ensure(spec)
        if refused:
            raise refused
        for entry in (*routing.twice, *routing.unwanted):
            remove_entry(netlink, entry)
            fault = "there twice" if entry in routing.twice else "not wanted"
            differed.append(f"{entry} is {fault}")
    return tuple(differed)


def is_installed(backends: Backends = NFTABLES) -> bool:
    """Whether there are rules of ours, whatever spec they were made for. Raises `RulesError`."""
    return backends.chosen.is_installed() or bool(backends.leftovers())


def remove(backends: Backends = NFTABLES) -> tuple[str, ...]:
    """Remove everything of ours, whatever spec it was made for; return what, in words.

    Rules of ours or Istio's prove whose the routes are, so the routes are marked before the
    rules go, and go last. A backend whose rules cannot be read does not keep the rest from
    going. But where rules cannot be removed, the routes that they need are left as well, and
    `RulesError` is raised: as long as ztunnel serves the pod, its traffic goes through.
    """
    with _routing() as netlink:
        routes = removable(netlink, proven=is_installed(backends))
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
