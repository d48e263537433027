"""The vocabulary of rules: which packets a rule is about, and what happens to them.

A `Rule` is data. `netfilter.nft` and `netfilter.iptables` write it in the languages of
nftables and iptables; which rules a pod gets is said in `redirect.rules`. All conditions of
a rule must hold for its verdict to apply.
"""

import socket
from dataclasses import dataclass
from enum import Enum, StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Generic, TypeVar


@dataclass(frozen=True, slots=True)
class Mark:
    """A packet or connection mark; the bits outside `mask` belong to others."""

    value: int
    mask: int = 0xFFF


class Family(Enum):
    """An address family; the value is the network of its loopback addresses."""

    V4 = IPv4Network("127.0.0.0/8")
    V6 = IPv6Network("::1/128")

    @property
    def version(self) -> int:
        """The version of the Internet Protocol: 4 or 6."""
        return 4 if self is Family.V4 else 6

    @property
    def number(self) -> int:
        """The kernel's number of the family: ``AF_INET`` or ``AF_INET6``."""
        return int(socket.AF_INET if self is Family.V4 else socket.AF_INET6)

    def __str__(self) -> str:
        return f"IPv{self.version}"


class Table(StrEnum):
    """The stage of a packet's way that a rule belongs to; iptables has tables of these names."""

    MANGLE = "mangle"
    NAT = "nat"
    RAW = "raw"


class Hook(StrEnum):
    """Where the packet is: it arrives, a process of this netns sends it, or it leaves."""

    PREROUTING = "prerouting"
    OUTPUT = "output"
    POSTROUTING = "postrouting"


class Direction(StrEnum):
    """Who sends a packet of a connection: ``original`` is the side that has opened it."""

    ORIGINAL = "original"
    REPLY = "reply"


class Protocol(StrEnum):
    """A transport protocol."""

    TCP = "tcp"
    UDP = "udp"


T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Is(Generic[T_co]):
    """The packet must have this value."""

    value: T_co


@dataclass(frozen=True, slots=True)
class Not(Generic[T_co]):
    """The packet must not have this value."""

    value: T_co


Address = IPv4Address | IPv6Address | IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class Redirect:
    """Deliver the packet to a port of this netns itself."""

    port: int


@dataclass(frozen=True, slots=True)
class SetConnmark:
    """Write a mark on the connection, leaving the bits outside its mask."""

    mark: Mark


@dataclass(frozen=True, slots=True)
class RestoreMark:
    """Copy the connection's mark to the packet."""


@dataclass(frozen=True, slots=True)
class SetZone:
    """Track the packet in a conntrack zone of its own."""

    zone: int


@dataclass(frozen=True, slots=True)
class Accept:
    """Leave the packet as it is; no later rule of this hook and table sees it."""


@dataclass(frozen=True, slots=True)
class Return:
    """Leave this chain."""


Verdict = Redirect | SetConnmark | RestoreMark | SetZone | Accept | Return


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A packet that meets every condition gets the verdict. ``None``: no condition."""

    table: Table
    hook: Hook
    families: tuple[Family, ...]
    verdict: Verdict
    arrives_on: Is[str] | None = None
    """The name of the interface that the packet came in by."""
    leaves_by: Is[str] | Not[str] | None = None
    """The name of the interface that the packet goes out by."""
    source: Is[Address] | None = None
    destination: Is[Address] | Not[Address] | None = None
    protocol: Protocol | None = None
    opening: bool = False
    """Only the first packet of a TCP connection (SYN alone)."""
    source_port: Is[int] | None = None
    destination_port: Is[int] | Not[int] | None = None
    mark: Is[Mark] | Not[Mark] | None = None
    connmark: Is[Mark] | None = None
    direction: Direction | None = None
