"""The kernel's count of nftables transactions: while it stands still, so do all rules."""

from nodeagent.linux.netlink import Netlink, attributes
from nodeagent.netfilter.errors import RedirectError, translated

NETLINK_NETFILTER = 12
# linux/netfilter/nf_tables.h and nfnetlink.h
_GETGEN = 10 << 8 | 16
_ANY_FAMILY = bytes(4)
_GENERATION_ID = 1


def generation(netlink: Netlink) -> int:
    """Ask the namespace that `netlink` was opened in, for 0.01 ms.

    It grows with each transaction, whoever makes it, and with nothing else. Raises
    `RedirectError`.
    """
    with translated("ask for the generation of the rules"):
        answer = netlink.get(_GETGEN, _ANY_FAMILY)
    found = dict(attributes(answer[len(_ANY_FAMILY) :])) if answer else {}
    if _GENERATION_ID not in found:
        raise RedirectError("the kernel does not tell the generation of its rules")
    return int.from_bytes(found[_GENERATION_ID], "big")


def own_generation() -> int:
    """Ask the calling thread's namespace. Raises `RedirectError`."""
    with translated("open a netfilter socket"):
        netlink = Netlink(NETLINK_NETFILTER)
    with netlink:
        return generation(netlink)
