"""A conntrack table that is full: as many entries as one network namespace may have."""

import socket
import struct
from ipaddress import IPv4Address

from nodeagent.linux.netlink import NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, Netlink, attribute
from nodeagent.netfilter.nfnetlink import NETLINK_NETFILTER

UDP = socket.SOCK_DGRAM

# linux/netfilter/nfnetlink_conntrack.h
_CT_NEW, _CT_DELETE = 1 << 8, 1 << 8 | 2
_NESTED = 0x8000
_ORIGINAL, _REPLY, _STATUS, _TIMEOUT = 1 | _NESTED, 2 | _NESTED, 3, 7
_MARK, _MARK_MASK = 8, 21
_IP, _PROTOCOL = 1 | _NESTED, 2 | _NESTED
# linux/netfilter/nf_conntrack_common.h: seen in both directions, assured, confirmed. What
# is assured is not given up for a newcomer.
_ASSURED = 1 << 1 | 1 << 2 | 1 << 3
_SECONDS = 600
_OURS = struct.pack("!I", 0xF111)
"""The mark of the entries made here."""
_AT_ONCE = 1024
_TEMPLATE = IPv4Address("198.18.0.1")
_SERVER = IPv4Address("198.19.0.1")


def fill() -> None:
    """Make entries until the calling thread's namespace has room for no other connection."""
    with open("/proc/sys/net/netfilter/nf_conntrack_max", encoding="ascii") as limit:
        missing = int(limit.read())
    template = b"".join(_entry(number) for number in range(_AT_ONCE))
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as netlink:
        for number in range(-(-missing // _AT_ONCE)):
            client = _TEMPLATE + number
            netlink.send(template.replace(_TEMPLATE.packed, client.packed))


def make_room() -> None:
    """Remove the entries that `fill` has made, and none of a connection that came meanwhile."""
    mark = attribute(_MARK, _OURS) + attribute(_MARK_MASK, b"\xff" * 4)
    with Netlink(NETLINK_NETFILTER) as netlink:
        netlink.request(_CT_DELETE, 0, bytes(4) + mark)


def _entry(number: int) -> bytes:
    body = (
        struct.pack("=BBH", socket.AF_INET, 0, 0)
        + attribute(_ORIGINAL, _tuple(_TEMPLATE, number, _SERVER, 9))
        + attribute(_REPLY, _tuple(_SERVER, 9, _TEMPLATE, number))
        + attribute(_STATUS, struct.pack("!I", _ASSURED))
        + attribute(_TIMEOUT, struct.pack("!I", _SECONDS))
        + attribute(_MARK, _OURS)
    )
    flags = NLM_F_REQUEST | NLM_F_CREATE | NLM_F_EXCL
    return struct.pack("=IHHII", 16 + len(body), _CT_NEW, flags, 0, 0) + body


def _tuple(source: IPv4Address, source_port: int, target: IPv4Address, target_port: int) -> bytes:
    addresses = attribute(1, source.packed) + attribute(2, target.packed)
    ports = (
        attribute(1, bytes([socket.IPPROTO_UDP]))
        + attribute(2, struct.pack("!H", source_port))
        + attribute(3, struct.pack("!H", target_port))
    )
    return attribute(_IP, addresses) + attribute(_PROTOCOL, ports)
