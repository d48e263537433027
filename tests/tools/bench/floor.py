"""The floor of in-pod set-up: the kernel's own time for the same rules and routes.

What a finished set-up left is read back from the kernel once and turned into the
requests that make it. Sending these takes two sockets and two packets, and nothing is
rendered, parsed or looked at: no agent can be faster.
"""

import os
import socket
import struct
from dataclasses import dataclass

from nodeagent.linux.netlink import NLM_F_ACK, NLM_F_REQUEST, Netlink
from nodeagent.netfilter.nfnetlink import NETLINK_NETFILTER
from nodeagent.netfilter.nft_batch import creation, packet
from nodeagent.redirect.nft_backend import read
from nodeagent.redirect.routes import LocalRoute, PolicyRule
from nodeagent.redirect.rules import RedirectSpec

_NLMSG_ERROR = 2
_HEADER = struct.Struct("=IHHII")


@dataclass(frozen=True, slots=True)
class Floor:
    """One packet for nftables, one for routing, and the answers that each brings."""

    rules: bytes
    routes: bytes
    route_answers: int

    @classmethod
    def of_current(cls, spec: RedirectSpec) -> "Floor":
        """Read it where `spec` was made true, in the calling thread's namespace."""
        rules = packet(list(creation(read())))
        with _Recorder(socket.NETLINK_ROUTE) as recorder:
            for family in spec.families:
                LocalRoute(family).add(recorder)
                PolicyRule(family).add(recorder)
        return cls(rules, b"".join(recorder.requests), len(recorder.requests))

    def send(self) -> None:
        """Make it stand in the calling thread's namespace. Raises ``OSError``."""
        _exchange(socket.NETLINK_ROUTE, self.routes, self.route_answers)
        _exchange(NETLINK_NETFILTER, self.rules, 1)


class _Recorder(Netlink):
    """Keeps the requests instead of sending them."""

    def __init__(self, protocol: int) -> None:
        super().__init__(protocol)
        self.requests: list[bytes] = []

    def request(self, kind: int, flags: int, body: bytes) -> None:
        self.requests.append(_message(kind, NLM_F_ACK | flags, body))


def _message(kind: int, flags: int, body: bytes) -> bytes:
    return _HEADER.pack(_HEADER.size + len(body), kind, NLM_F_REQUEST | flags, 0, 0) + body


def _exchange(protocol: int, packet: bytes, answers: int) -> None:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol) as netlink:
        netlink.send(packet)
        while answers > 0:
            data = netlink.recv(1 << 15)
            offset = 0
            while offset < len(data):
                length, kind = struct.unpack_from("=IH", data, offset)
                (code,) = struct.unpack_from("=i", data, offset + _HEADER.size)
                if kind == _NLMSG_ERROR and code:
                    raise OSError(-code, os.strerror(-code))
                answers -= 1
                offset += length + 3 & ~3
