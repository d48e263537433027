"""ztunnel's sockets in a pod: on which ports it listens, and how many connections it has."""

import socket
import struct
from collections.abc import Iterator

from nodeagent.linux.netlink import Netlink
from nodeagent.netfilter.errors import wrap_oserror
from nodeagent.redirect.rules import DNS_PORT, HBONE_PORT, INBOUND_PORT, OUTBOUND_PORT, RedirectSpec

# linux/sock_diag.h, linux/inet_diag.h
_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
# net/tcp_states.h
_LISTENING = 1 << 10
_OPEN = 1 << 1 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11
"""Established, or closed on one side only."""
_REQUEST = struct.Struct("=BBBxI48x")  # family, protocol, extensions, states; any socket
_SOURCE_PORT = struct.Struct("!4xH")  # after family, state, timer and retransmissions


def silent_ports(spec: RedirectSpec) -> tuple[int, ...]:
    """Return ports that `spec` needs and nobody listens on, in the calling thread's netns.

    Needed are the ports that packets are redirected to, and the one that other ztunnels
    dial. Raises `RulesError`.
    """
    expected = {OUTBOUND_PORT, HBONE_PORT}
    if not spec.bypass_inbound:
        expected.add(INBOUND_PORT)
    if spec.dns_capture:
        expected.add(DNS_PORT)
    return tuple(sorted(expected.difference(_local_ports(_LISTENING))))


def open_connections() -> int:
    """Count the TCP connections with one of ztunnel's ports, there. Raises `RulesError`."""
    ports = (OUTBOUND_PORT, INBOUND_PORT, HBONE_PORT, DNS_PORT)
    return sum(port in ports for port in _local_ports(_OPEN))


def _local_ports(states: int) -> Iterator[int]:
    """Yield the local port of each socket, one by one: a pod may have a million of them."""
    with wrap_oserror("list the sockets"), Netlink(_NETLINK_SOCK_DIAG) as netlink:
        for family in (socket.AF_INET, socket.AF_INET6):
            for body in _sockets(netlink, family, states):
                yield _SOURCE_PORT.unpack_from(body)[0]


def _sockets(netlink: Netlink, family: socket.AddressFamily, states: int) -> Iterator[bytes]:
    try:
        yield from netlink.each(
            _SOCK_DIAG_BY_FAMILY, _REQUEST.pack(family, socket.IPPROTO_TCP, 0, states)
        )
    except FileNotFoundError:  # a kernel without IPv6 has no sockets of it
        if family is socket.AF_INET:
            raise
