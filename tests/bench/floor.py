"""The floor of in-pod set-up: the kernel's own time for the same rules and routes.

What a finished set-up left is read back from the kernel once and turned into the
requests that make it. Sending these takes two sockets and two packets, and nothing is
rendered, parsed or looked at: no agent can be faster.
"""

import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from nodeagent.redirect.netlink import NLM_F_ACK, NLM_F_CREATE, NLM_F_REQUEST, Netlink
from nodeagent.redirect.routes import add_entry, wanted_entries
from nodeagent.redirect.rules import PodRedirect

# linux/netlink.h, linux/netfilter/nfnetlink.h and nf_tables.h
_NETLINK_NETFILTER = 12
_NLM_F_APPEND = 0x800
_NLMSG_ERROR = 2
_BATCH_BEGIN, _BATCH_END = 16, 17
_NFTABLES = 10
_INET = struct.pack("=BBH", 1, 0, 0)
_BATCH_HEADER = struct.pack("=BBH", 0, 0, socket.htons(_NFTABLES))
_HEADER = struct.Struct("=IHHII")
_TYPE_MASK = 0x3FFF

# What to read, what makes it, with which flags, and which attributes only the kernel can
# give: use counts, handles, positions, counters of a chain.
_OBJECTS = (
    (1, 0, 0, {3, 4}),
    (4, 3, 0, {2, 6, 8}),
    (7, 6, _NLM_F_APPEND, {3, 6}),
)


@dataclass(frozen=True, slots=True)
class Floor:
    """One packet for nftables, one for routing, and the answers that each brings."""

    rules: bytes
    routes: bytes
    route_answers: int

    @classmethod
    def of_current(cls, spec: PodRedirect) -> "Floor":
        """Read it where `spec` was made true, in the calling thread's namespace."""
        objects = list(_objects())
        messages = [_message(_BATCH_BEGIN, 0, _BATCH_HEADER)]
        for number, (kind, flags, body) in enumerate(objects, start=1):
            # The answer to the last one comes when the whole batch has been committed.
            acknowledged = NLM_F_ACK if number == len(objects) else 0
            messages.append(_message(kind, NLM_F_CREATE | flags | acknowledged, body))
        messages.append(_message(_BATCH_END, 0, _BATCH_HEADER))
        with _Recorder(socket.NETLINK_ROUTE) as recorder:
            for entry in wanted_entries(spec):
                add_entry(recorder, entry)
        return cls(b"".join(messages), b"".join(recorder.requests), len(recorder.requests))

    def send(self) -> None:
        """Make it stand in the calling thread's namespace. Raises ``OSError``."""
        _exchange(socket.NETLINK_ROUTE, self.routes, self.route_answers)
        _exchange(_NETLINK_NETFILTER, self.rules, 1)


class _Recorder(Netlink):
    """Keeps the requests instead of sending them."""

    def __init__(self, protocol: int) -> None:
        super().__init__(protocol)
        self.requests: list[bytes] = []

    def request(self, kind: int, flags: int, body: bytes) -> None:
        self.requests.append(_message(kind, NLM_F_ACK | flags, body))


def _objects() -> Iterator[tuple[int, int, bytes]]:
    with Netlink(_NETLINK_NETFILTER) as netlink:
        for get, new, flags, unwanted in _OBJECTS:
            for body in netlink.dump(_NFTABLES << 8 | get, _INET):
                yield _NFTABLES << 8 | new, flags, _INET + _without(body[len(_INET) :], unwanted)


def _without(data: bytes, unwanted: set[int]) -> bytes:
    kept = b""
    offset = 0
    while offset < len(data):
        length, kind = struct.unpack_from("=HH", data, offset)
        end = offset + length + 3 & ~3
        if kind & _TYPE_MASK not in unwanted:
            kept += data[offset:end]
        offset = end
    return kept


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
