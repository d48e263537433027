"""Addresses as a dual-stack socket gives and takes them."""

import ipaddress
import socket
import struct
from dataclasses import dataclass
from typing import Any, Self

_SO_ORIGINAL_DST = 80  # linux/netfilter_ipv4.h; IP6T_SO_ORIGINAL_DST has the same number
_MAPPED = "::ffff:"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An IP address and a port. An IPv4 address is never in its IPv6-mapped form."""

    host: str
    port: int
    scope: int = 0
    """The interface's index, where `host` is link-local."""

    @classmethod
    def of_sockaddr(cls, sockaddr: tuple[Any, ...]) -> Self:
        """From what ``accept``, ``getsockname`` and ``recvfrom`` return."""
        host, port = sockaddr[0], sockaddr[1]
        if host.startswith(_MAPPED) and "." in host:
            return cls(host.removeprefix(_MAPPED), port)
        return cls(host, port, sockaddr[3] if len(sockaddr) == 4 else 0)

    @classmethod
    def parse(cls, text: str) -> Self:
        """From ``ADDRESS:PORT`` or ``[ADDRESS]:PORT``. Raises ``ValueError``."""
        host, _, port = text.rpartition(":")
        address = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
        if not port.isascii() or not port.isdigit() or int(port) > 0xFFFF:
            raise ValueError(f"{port!r} is not a port")
        return cls(str(address), int(port))

    @property
    def family(self) -> socket.AddressFamily:
        """``AF_INET`` or ``AF_INET6``."""
        return socket.AF_INET6 if ":" in self.host else socket.AF_INET

    @property
    def sockaddr(self) -> tuple[Any, ...]:
        """For ``bind`` and ``connect`` of a socket of `family`."""
        if self.family == socket.AF_INET6:
            return self.host, self.port, 0, self.scope
        return self.host, self.port

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def original_destination(connection: socket.socket) -> Endpoint:
    """Where the peer of an accepted connection wanted to go before it was redirected.

    The connection's own local address where nothing redirected it.
    """
    local = Endpoint.of_sockaddr(connection.getsockname())
    try:
        # A v4 connection on a dual-stack socket has its answer at the v4 level.
        if local.family == socket.AF_INET:
            raw = connection.getsockopt(socket.SOL_IP, _SO_ORIGINAL_DST, 16)
            port, address = struct.unpack_from("!2xH4s", raw)
            return Endpoint(socket.inet_ntop(socket.AF_INET, address), port)
        raw = connection.getsockopt(socket.IPPROTO_IPV6, _SO_ORIGINAL_DST, 28)
    except OSError:  # not in conntrack's table, or the kernel has none
        return local
    port, address = struct.unpack_from("!2xH4x16s", raw)
    (scope,) = struct.unpack_from("=I", raw, 24)
    return Endpoint(socket.inet_ntop(socket.AF_INET6, address), port, scope)
