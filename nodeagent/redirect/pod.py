"""The redirection of one pod: look, mend what differs, remove.

Each function works in the network namespace of the thread that calls it, and
leaves nothing open.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from socket import NETLINK_ROUTE

from nodeagent.redirect.backend import Backends
from nodeagent.redirect.errors import translated
from nodeagent.redirect.netlink import Netlink
from nodeagent.redirect.routes import add_entry, count_entries, remove_entries, wanted_entries
from nodeagent.redirect.rules import PodRedirect

NFTABLES = Backends.choose(None)
"""What every node has unless its settings say otherwise."""


def inspect(spec: PodRedirect, backends: Backends = NFTABLES) -> tuple[str, ...]:
    """Say what differs from `spec`; empty where all is as intended. Raises `RedirectError`."""
    wanted = wanted_entries(spec)
    with _routing() as netlink:
        counts = count_entries(netlink)
    return (
        *(f"{entry} is missing" for entry in counts if entry in wanted and not counts[entry]),
        *backends.chosen.inspect(spec),
        *backends.leftovers(),
        *(f"{entry} is not wanted" for entry in counts if counts[entry] and entry not in wanted),
    )


def ensure(spec: PodRedirect, backends: Backends = NFTABLES) -> tuple[str, ...]:
    """Make `spec` true; return what differed before, empty where nothing was touched.

    Raises `RedirectError`. The way for replies comes before the rules that make
    them need it, and goes after them, so a failure in between redirects nothing
    that cannot get back.
    """
    wanted = wanted_entries(spec)
    mended: list[str] = []
    with _routing() as netlink:
        counts = count_entries(netlink)
        for entry, count in counts.items():
            if entry in wanted and not count:
                add_entry(netlink, entry)
                mended.append(f"{entry} is missing")
        mended += backends.chosen.ensure(spec)
        mended += backends.sweep()
        for entry, count in counts.items():
            if entry not in wanted and count:
                remove_entries(netlink, entry, count)
                mended.append(f"{entry} is not wanted")
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
