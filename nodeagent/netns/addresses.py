"""Which addresses a netns has."""

from collections.abc import Iterator
from ipaddress import ip_address
from socket import AF_UNSPEC, NETLINK_ROUTE

from pyroute2.netlink.rtnl import RTM_GETADDR

from nodeagent.linux.netlink import Netlink, attributes
from nodeagent.mesh.pod import IPAddress

# linux/if_addr.h
_HEADER_SIZE = 8
_IFA_ADDRESS, _IFA_LOCAL = 1, 2


def local_addresses() -> frozenset[IPAddress]:
    """The addresses in the calling thread's netns. Raises ``OSError``."""
    with Netlink(NETLINK_ROUTE) as netlink:
        return frozenset(_addresses(netlink))


def _addresses(netlink: Netlink) -> Iterator[IPAddress]:
    for body in netlink.dump(RTM_GETADDR, bytes([AF_UNSPEC]).ljust(_HEADER_SIZE, b"\0")):
        found = dict(attributes(body[_HEADER_SIZE:]))
        # IFA_ADDRESS is the other end's on a point-to-point interface.
        yield ip_address(found.get(_IFA_LOCAL) or found[_IFA_ADDRESS])
