"""The redirection of one pod: look, mend what differs, remove.

Each function works in the network namespace of the thread that calls it, and
leaves nothing open.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from socket import NETLINK_ROUTE

from nodeagent.redirect import nftables, standing
from nodeagent.redirect.errors import translated
from nodeagent.redirect.netlink import Netlink
from nodeagent.redirect.routes import add_entry, count_entries, remove_entries, wanted_entries
from nodeagent.redirect.rules import PodRedirect


def inspect(spec: PodRedirect) -> tuple[str, ...]:
    """Say what differs from `spec`; empty where all is as intended. Raises `RedirectError`."""
    wanted = wanted_entries(spec)
    with _routing() as netlink:
        counts = count_entries(netlink)
    return (
        *(f"{entry} is missing" for entry in counts if entry in wanted and not counts[entry]),
        *_rule_differences(spec, standing.read()),
        *(f"{entry} is not wanted" for entry in counts if counts[entry] and entry not in wanted),
    )


def ensure(spec: PodRedirect) -> tuple[str, ...]:
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
        have = standing.read()
        if found := _rule_differences(spec, have):
            nftables.apply(nftables.render(spec, replacing=have))
            mended += found
        for entry, count in counts.items():
            if entry not in wanted and count:
                remove_entries(netlink, entry, count)
                mended.append(f"{entry} is not wanted")
    return tuple(mended)


def stands() -> bool:
    """Whether rules of ours stand, whatever they were made for. Raises `RedirectError`."""
    return bool(standing.read())


def remove() -> bool:
    """Remove everything of ours, whatever it was made for; return whether anything stood.

    Raises `RedirectError`.
    """
    have = standing.read()
    if have:
        nftables.apply(nftables.render_removal(have))
    with _routing() as netlink:
        counts = count_entries(netlink)
        for entry, count in counts.items():
            remove_entries(netlink, entry, count)
    return bool(have) or any(counts.values())


def _rule_differences(spec: PodRedirect, have: standing.Tables) -> tuple[str, ...]:
    # A pod that was just made has none of our tables: nothing to compare with.
    if not have:
        return ("rules are missing",)
    return tuple(standing.differences(have, standing.reference(spec)))


@contextmanager
def _routing() -> Iterator[Netlink]:
    with translated("open a routing socket"):
        netlink = Netlink(NETLINK_ROUTE)
    with netlink:
        yield netlink
