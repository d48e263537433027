"""The redirection of one pod: look, mend what differs, remove.

Each function works in the network namespace of the thread that calls it, and
leaves nothing open.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from socket import NETLINK_ROUTE

from nodeagent.netlink import Netlink
from nodeagent.redirect.backend import Backends
from nodeagent.redirect.errors import RedirectError, translated
from nodeagent.redirect.routes import add_entry, count_entries, remove_entries, wanted_entries
from nodeagent.redirect.rules import PodRedirect

NFTABLES = Backends.choose(None)
"""What every node has unless its settings say otherwise."""


def inspect(spec: PodRedirect, backends: Backends = NFTABLES) -> tuple[str, ...]:
    """Say what differs from `spec`; empty where all is as intended. Raises `RedirectError`."""
    with _routing() as netlink:
        wanted = wanted_entries(netlink, spec)
        counts = count_entries(netlink)
    return (
        *(f"{entry} is missing" for entry in counts if entry in wanted and not counts[entry]),
        *backends.chosen.inspect(spec),
        *backends.leftovers(),
        *(f"{entry} is there twice" for entry in counts if entry in wanted and counts[entry] > 1),
        *(f"{entry} is not wanted" for entry in counts if counts[entry] and entry not in wanted),
    )


def ensure(
    spec: PodRedirect, backends: Backends = NFTABLES, *, rules_are_right: bool = False
) -> tuple[str, ...]:
    """Make `spec` true; return what differed before, empty where nothing was touched.

    Rules that `rules_are_right` vouches for are not read again, routes are. The way
    for replies comes before the rules that make them need it, and goes after them. But
    the rules do not wait for it: where a route cannot be had, because `lo` is down,
    say, the pod fails closed. Raises `RedirectError`.
    """
    mended: list[str] = []
    refused: RedirectError | None = None
    with _routing() as netlink:
        wanted = wanted_entries(netlink, spec)
        counts = count_entries(netlink)
        for entry, count in counts.items():
            if entry in wanted and not count:
                mended.append(f"{entry} is missing")
                try:
                    add_entry(netlink, entry)
                except RedirectError as error:
                    refused = error
        if not rules_are_right:
            mended += backends.chosen.ensure(spec)
            mended += backends.sweep()
        if refused:
            raise refused
        for entry, count in counts.items():
            surplus = count - (entry in wanted)
            if surplus > 0:
                remove_entries(netlink, entry, surplus)
                mended.append(f"{entry} is {'there twice' if entry in wanted else 'not wanted'}")
    return tuple(mended)


def stands(backends: Backends = NFTABLES) -> bool:
    """Whether rules of ours stand, whatever they were made for. Raises `RedirectError`."""
    return backends.chosen.stands() or bool(backends.leftovers())


def remove(backends: Backends = NFTABLES) -> bool:
    """Remove everything of ours, whatever it was made for; return whether anything stood.

    Raises `RedirectError`.
    """
    stood = backends.chosen.remove()
    stood = bool(backends.sweep()) or stood
    with _routing() as netlink:
        counts = count_entries(netlink)
        for entry, count in counts.items():
            remove_entries(netlink, entry, count)
    return stood or any(counts.values())


@contextmanager
def _routing() -> Iterator[Netlink]:
    with translated("open a routing socket"):
        netlink = Netlink(NETLINK_ROUTE)
    with netlink:
        yield netlink
