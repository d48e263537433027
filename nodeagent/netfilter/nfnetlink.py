"""The numbers and the header of netfilter's netlink messages.

Each message starts, behind netlink's own header, with an address family and a resource
number (`header`); attributes follow. The names are the kernel's, from linux/netlink.h,
linux/netfilter/nfnetlink.h and linux/netfilter/nf_tables.h, but a message's number includes
its subsystem here, as it does in the packet.
"""

import socket
import struct

from nodeagent.linux.netlink import attribute

NETLINK_NETFILTER = 12
"""The netlink protocol."""
NFNLGRP_NFTABLES = 7
"""The multicast group that hears of every change to nftables' rules and sets."""

NFNL_SUBSYS_IPSET = 6
NFNL_SUBSYS_NFTABLES = 10

NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END = 16, 17

_NFTABLES = NFNL_SUBSYS_NFTABLES << 8
NFT_MSG_NEWTABLE = _NFTABLES | 0
NFT_MSG_GETTABLE = _NFTABLES | 1
NFT_MSG_DELTABLE = _NFTABLES | 2
NFT_MSG_NEWCHAIN = _NFTABLES | 3
NFT_MSG_GETCHAIN = _NFTABLES | 4
NFT_MSG_NEWRULE = _NFTABLES | 6
NFT_MSG_GETRULE = _NFTABLES | 7
NFT_MSG_GETSET = _NFTABLES | 10
NFT_MSG_GETSETELEM = _NFTABLES | 13
NFT_MSG_GETGEN = _NFTABLES | 16

NFPROTO_UNSPEC = 0
NFPROTO_INET = 1
"""nftables' family for IPv4 and IPv6 together; of iptables-nft's tables it is ``AF_INET``…"""

_HEADER = struct.Struct("=BBH")
HEADER_SIZE = _HEADER.size
"""Bytes of a message's body before its attributes."""

NLA_F_NESTED = 0x8000
NLA_F_NET_BYTEORDER = 0x4000


def header(family: int, resource: int = 0) -> bytes:
    """Encode the header of a message about `family`: ``NFPROTO_…``, or ``AF_…`` alike."""
    return _HEADER.pack(family, 0, socket.htons(resource))


def name_attribute(kind: int, name: str) -> bytes:
    """Encode `name` as the attribute `kind`: netfilter's names end with a zero byte."""
    return attribute(kind, name.encode() + b"\0")
