"""Which of ztunnel's ports somebody listens on in a pod."""

import socket
import struct

from nodeagent.redirect.errors import translated
from nodeagent.redirect.netlink import Netlink
from nodeagent.redirect.rules import DNS_PORT, HBONE_PORT, INBOUND_PORT, OUTBOUND_PORT, PodRedirect

# linux/sock_diag.h, linux/inet_diag.h, net/tcp_states.h
_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_LISTENING = 1 << 10
_REQUEST = struct.Struct("=BBBxI48x")  # family, protocol, extensions, states; any socket
_SOURCE_PORT = struct.Struct("!4xH")  # after family, state, timer and retransmissions


def silent_ports(spec: PodRedirect) -> tuple[int, ...]:
    """Ports that `spec` redirects to, or that ztunnel is dialled at, where nobody listens.

    Asks the calling thread's network namespace. Raises `RedirectError`.
    """
    expected = [OUTBOUND_PORT, HBONE_PORT]
    if not spec.ingress:
        expected.append(INBOUND_PORT)
    if spec.dns_capture:
        expected.append(DNS_PORT)
    with translated("list the listeners"), Netlink(_NETLINK_SOCK_DIAG) as netlink:
        listening = {
            _SOURCE_PORT.unpack_from(body)[0]
            for family in (socket.AF_INET, socket.AF_INET6)
            for body in netlink.dump(
                _SOCK_DIAG_BY_FAMILY, _REQUEST.pack(family, socket.IPPROTO_TCP, 0, _LISTENING)
            )
        }
    return tuple(sorted(set(expected) - listening))
