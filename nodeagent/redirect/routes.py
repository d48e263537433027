"""The policy rules and local routes that take the app's replies back to ztunnel."""

import errno
import struct
from dataclasses import dataclass
from socket import AF_INET, AF_INET6
from typing import Protocol

from nodeagent.redirect.errors import translated
from nodeagent.redirect.netlink import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    Netlink,
    attribute,
    attributes,
)
from nodeagent.redirect.rules import (
    REPLY_MARK,
    REPLY_PRIORITY,
    REPLY_TABLE,
    Family,
    PodRedirect,
)

# linux/rtnetlink.h and linux/fib_rules.h
_RTM_NEWROUTE, _RTM_DELROUTE, _RTM_GETROUTE = 24, 25, 26
_RTM_NEWRULE, _RTM_DELRULE, _RTM_GETRULE = 32, 33, 34
_RTA_OIF, _RTA_TABLE = 4, 15
_FRA_PRIORITY, _FRA_FWMARK, _FRA_TABLE, _FRA_FWMASK = 6, 10, 15, 16
_FRA_SUPPRESS_PREFIXLEN, _FRA_PAD, _FRA_PROTOCOL = 14, 18, 21
_FR_ACT_TO_TBL = 1
_FIB_RULE_INVERT = 2
_RT_SCOPE_HOST = 254
_RTN_LOCAL = 2
_RTPROT_BOOT = 3  # what the ip program writes, too

_LOOPBACK_INDEX = 1  # in every network namespace: LOOPBACK_IFINDEX
_RULE_HEADER = struct.Struct("=BBBBBBBBI")
_ROUTE_HEADER = struct.Struct("=BBBBBBBBI")
_AF = {Family.V4: AF_INET, Family.V6: AF_INET6}
_DISABLE_IPV6 = "/proc/sys/net/ipv6/conf/lo/disable_ipv6"


class Entry(Protocol):
    """One thing in the pod's routing that is there or not."""

    def count(self, netlink: Netlink) -> int:
        """How many stand; only other software makes it more than one. Raises ``OSError``."""

    def add(self, netlink: Netlink) -> None:
        """Add one. Raises ``OSError``."""

    def remove(self, netlink: Netlink) -> None:
        """Remove one. Raises ``OSError``."""


@dataclass(frozen=True, slots=True)
class PolicyRule:
    """``ip rule add fwmark 0x111/0xfff pref 32764 lookup 100``."""

    family: Family

    def count(self, netlink: Netlink) -> int:
        """See `Entry`. A rule with any further condition is somebody else's."""
        header = _RULE_HEADER.pack(_AF[self.family], 0, 0, 0, 0, 0, 0, 0, 0)
        return sum(map(_is_reply_rule, netlink.dump(_RTM_GETRULE, header)))

    def add(self, netlink: Netlink) -> None:
        """See `Entry`."""
        protocol = attribute(_FRA_PROTOCOL, bytes([_RTPROT_BOOT]))
        netlink.request(_RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL, self._body() + protocol)

    def remove(self, netlink: Netlink) -> None:
        """See `Entry`."""
        netlink.request(_RTM_DELRULE, 0, self._body())

    def _body(self) -> bytes:
        header = _RULE_HEADER.pack(_AF[self.family], 0, 0, 0, REPLY_TABLE, 0, 0, _FR_ACT_TO_TBL, 0)
        return header + b"".join(attribute(*pair) for pair in _REPLY_RULE.items())

    def __str__(self) -> str:
        return f"policy rule for {self.family}"


@dataclass(frozen=True, slots=True)
class LocalRoute:
    """``ip route replace local 0.0.0.0/0 dev lo table 100``, or ``::/0``."""

    family: Family

    def count(self, netlink: Netlink) -> int:
        """See `Entry`."""
        header = _ROUTE_HEADER.pack(_AF[self.family], 0, 0, 0, 0, 0, 0, 0, 0)
        try:
            routes = netlink.dump(_RTM_GETROUTE, header + _TABLE)
        except FileNotFoundError:  # a table that never had a route
            return 0
        return sum(map(_is_reply_route, routes))

    def add(self, netlink: Netlink) -> None:
        """See `Entry`."""
        netlink.request(_RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, self._body())

    def remove(self, netlink: Netlink) -> None:
        """See `Entry`."""
        netlink.request(_RTM_DELROUTE, 0, self._body())

    def _body(self) -> bytes:
        header = _ROUTE_HEADER.pack(
            _AF[self.family], 0, 0, 0, REPLY_TABLE, _RTPROT_BOOT, _RT_SCOPE_HOST, _RTN_LOCAL, 0
        )
        return header + _TABLE + attribute(_RTA_OIF, _u32(_LOOPBACK_INDEX))

    def __str__(self) -> str:
        return f"local route for {self.family}"


ENTRIES: tuple[Entry, ...] = (
    PolicyRule(Family.V4),
    LocalRoute(Family.V4),
    PolicyRule(Family.V6),
    LocalRoute(Family.V6),
)
"""Everything that may stand in a pod's routing because of us."""


def wanted_entries(spec: PodRedirect) -> frozenset[Entry]:
    """Which of `ENTRIES` should stand in the calling thread's network namespace."""
    families = [family for family in spec.families if family is Family.V4 or _loopback_has_ipv6()]
    return frozenset(entry(family) for family in families for entry in (PolicyRule, LocalRoute))


def count_entries(netlink: Netlink) -> dict[Entry, int]:
    """How many of each of `ENTRIES` stand. Raises `RedirectError`."""
    return {entry: _count(entry, netlink) for entry in ENTRIES}


def add_entry(netlink: Netlink, entry: Entry) -> None:
    """Add `entry`, which does not stand. Raises `RedirectError`."""
    with translated(f"add the {entry}"):
        entry.add(netlink)


def remove_entries(netlink: Netlink, entry: Entry, count: int) -> None:
    """Remove `entry` as often as it stands. Raises `RedirectError`."""
    with translated(f"remove the {entry}"):
        for _ in range(count):
            entry.remove(netlink)


def _count(entry: Entry, netlink: Netlink) -> int:
    with translated(f"look for the {entry}"):
        try:
            return entry.count(netlink)
        except OSError as error:
            # A kernel without IPv6 at all.
            if error.errno in {errno.EAFNOSUPPORT, errno.EOPNOTSUPP}:
                return 0
            raise


def _loopback_has_ipv6() -> bool:
    # /proc/sys/net shows the namespace of the thread that reads it.
    try:
        with open(_DISABLE_IPV6, encoding="ascii") as setting:
            return setting.read().strip() == "0"
    except OSError:  # a kernel without IPv6 at all
        return False


def _is_reply_rule(body: bytes) -> bool:
    _, target, source, tos, _, _, _, action, flags = _RULE_HEADER.unpack_from(body)
    plain = not (target or source or tos or flags & _FIB_RULE_INVERT)
    conditions = {
        kind: payload
        for kind, payload in attributes(body[_RULE_HEADER.size :])
        if kind not in {_FRA_PROTOCOL, _FRA_PAD} and (kind, payload) != _SUPPRESS_NOTHING
    }
    return plain and action == _FR_ACT_TO_TBL and conditions == _REPLY_RULE


def _is_reply_route(body: bytes) -> bool:
    _, target, source, tos, _, _, _, kind, _ = _ROUTE_HEADER.unpack_from(body)
    found = dict(attributes(body[_ROUTE_HEADER.size :]))
    return (
        not (target or source or tos)
        and kind == _RTN_LOCAL
        and found.get(_RTA_TABLE) == _u32(REPLY_TABLE)
        and found.get(_RTA_OIF) == _u32(_LOOPBACK_INDEX)
    )


def _u32(value: int) -> bytes:
    return struct.pack("=I", value)


_TABLE = attribute(_RTA_TABLE, _u32(REPLY_TABLE))
_SUPPRESS_NOTHING = (_FRA_SUPPRESS_PREFIXLEN, _u32(0xFFFF_FFFF))
_REPLY_RULE = {
    _FRA_PRIORITY: _u32(REPLY_PRIORITY),
    _FRA_FWMARK: _u32(REPLY_MARK.value),
    _FRA_FWMASK: _u32(REPLY_MARK.mask),
    _FRA_TABLE: _u32(REPLY_TABLE),
}
