"""The policy rules and local routes that take the app's replies back to ztunnel."""

import errno
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from socket import AF_INET, AF_INET6
from typing import Protocol

from pyroute2.netlink import NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, nlmsg
from pyroute2.netlink.rtnl import (
    RTM_DELROUTE,
    RTM_DELRULE,
    RTM_GETLINK,
    RTM_GETROUTE,
    RTM_GETRULE,
    RTM_NEWROUTE,
    RTM_NEWRULE,
    rt_proto,
    rt_scope,
    rt_type,
)
from pyroute2.netlink.rtnl.fibmsg import FR_ACT_TO_TBL, fibmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from nodeagent.netlink import Netlink, attribute, attributes
from nodeagent.redirect.errors import translated
from nodeagent.redirect.rules import (
    REPLY_MARK,
    REPLY_PRIORITY,
    REPLY_TABLE,
    Family,
    PodRedirect,
)

# linux/fib_rules.h
_FRA_SUPPRESS_PREFIXLEN, _FRA_PAD, _FRA_PROTOCOL = 14, 18, 21
_FIB_RULE_INVERT = 2
# linux/rtnetlink.h
_RTA_OIF, _RTA_TABLE = 4, 15

_LOOPBACK_INDEX = 1  # in every network namespace: LOOPBACK_IFINDEX
_LINK_HEADER = struct.Struct("=BxHiII")
_AF = {Family.V4: AF_INET, Family.V6: AF_INET6}
# linux/if_link.h and ipv6.h
_IFLA_AF_SPEC, _IFLA_INET6_CONF = 26, 2
_IFLA_EXT_MASK, _SKIP_STATISTICS = 29, 1 << 3
_LOOPBACK = _LINK_HEADER.pack(0, 0, _LOOPBACK_INDEX, 0, 0) + attribute(
    _IFLA_EXT_MASK, struct.pack("=I", _SKIP_STATISTICS)
)
_DISABLE_IPV6 = 26  # DEVCONF_DISABLE_IPV6


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
        wanted = _conditions(_reply_rule(self.family))
        rules = netlink.dump(RTM_GETRULE, _all_rules(self.family))
        return sum(_is_plain(rule) and _conditions(rule) == wanted for rule in rules)

    def add(self, netlink: Netlink) -> None:
        """See `Entry`."""
        netlink.request(RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL, _reply_rule(self.family))

    def remove(self, netlink: Netlink) -> None:
        """See `Entry`."""
        netlink.request(RTM_DELRULE, 0, _reply_rule(self.family))

    def __str__(self) -> str:
        return f"policy rule for {self.family}"


@dataclass(frozen=True, slots=True)
class LocalRoute:
    """``ip route replace local 0.0.0.0/0 dev lo table 100``, or ``::/0``."""

    family: Family

    def count(self, netlink: Netlink) -> int:
        """See `Entry`."""
        wanted = _reply_route(self.family)
        try:
            routes = netlink.dump(RTM_GETROUTE, _reply_table(self.family))
        except FileNotFoundError:  # a table that never had a route
            return 0
        return sum(_is_same_route(route, wanted) for route in routes)

    def add(self, netlink: Netlink) -> None:
        """See `Entry`."""
        netlink.request(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, _reply_route(self.family))

    def remove(self, netlink: Netlink) -> None:
        """See `Entry`."""
        netlink.request(RTM_DELROUTE, 0, _reply_route(self.family))

    def __str__(self) -> str:
        return f"local route for {self.family}"


ENTRIES: tuple[Entry, ...] = (
    PolicyRule(Family.V4),
    LocalRoute(Family.V4),
    PolicyRule(Family.V6),
    LocalRoute(Family.V6),
)
"""Everything that may stand in a pod's routing because of us."""


def wanted_entries(netlink: Netlink, spec: PodRedirect) -> frozenset[Entry]:
    """Which of `ENTRIES` should stand in the namespace of `netlink`. Raises `RedirectError`."""
    families = [
        family for family in spec.families if family is Family.V4 or _loopback_has_ipv6(netlink)
    ]
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


def _loopback_has_ipv6(netlink: Netlink) -> bool:
    # Not through /proc/sys: a look-up there passes every other namespace's entry of that name.
    with translated("look at the loopback interface"):
        loopback = netlink.get(RTM_GETLINK, _LOOPBACK)
    assert loopback is not None  # noqa: S101 - there is no namespace without
    families = dict(attributes(dict(attributes(loopback[_LINK_HEADER.size :]))[_IFLA_AF_SPEC]))
    if AF_INET6 not in families:  # a kernel without IPv6 at all
        return False
    settings = dict(attributes(families[AF_INET6]))[_IFLA_INET6_CONF]
    (disabled,) = struct.unpack_from("=i", settings, 4 * _DISABLE_IPV6)
    return bool(disabled == 0)


@lru_cache
def _all_rules(family: Family) -> bytes:
    return _encoded(fibmsg(), family=_AF[family])


@lru_cache
def _reply_rule(family: Family) -> bytes:
    return _encoded(
        fibmsg(),
        family=_AF[family],
        table=REPLY_TABLE,
        action=FR_ACT_TO_TBL,
        attrs=[
            ("FRA_PRIORITY", REPLY_PRIORITY),
            ("FRA_FWMARK", REPLY_MARK.value),
            ("FRA_FWMASK", REPLY_MARK.mask),
            ("FRA_TABLE", REPLY_TABLE),
            ("FRA_PROTOCOL", rt_proto["boot"]),  # what the ip program writes, too
        ],
    )


@lru_cache
def _reply_table(family: Family) -> bytes:
    return _encoded(rtmsg(), family=_AF[family], attrs=[("RTA_TABLE", REPLY_TABLE)])


@lru_cache
def _reply_route(family: Family) -> bytes:
    return _encoded(
        rtmsg(),
        family=_AF[family],
        table=REPLY_TABLE,
        proto=rt_proto["boot"],
        scope=rt_scope["host"],
        type=rt_type["local"],
        attrs=[("RTA_TABLE", REPLY_TABLE), ("RTA_OIF", _LOOPBACK_INDEX)],
    )


def _encoded(message: nlmsg, **fields: object) -> bytes:
    """Have pyroute2 encode `message`; without the header, which is the socket's matter."""
    for name, value in fields.items():
        message[name] = value
    message.encode()
    return bytes(message.data[16:])


def _is_plain(rule: bytes) -> bool:
    _, target, source, tos, _, _, _, action, flags = _HEADER.unpack_from(rule)
    return not (target or source or tos or flags & _FIB_RULE_INVERT) and action == FR_ACT_TO_TBL


def _conditions(rule: bytes) -> Mapping[int, bytes]:
    return {
        kind: payload
        for kind, payload in attributes(rule[_HEADER.size :])
        if kind not in {_FRA_PROTOCOL, _FRA_PAD} and (kind, payload) != _SUPPRESS_NOTHING
    }


def _is_same_route(have: bytes, want: bytes) -> bool:
    _, target, source, tos, _, _, _, kind, _ = _HEADER.unpack_from(have)
    found, wanted = (dict(attributes(route[_HEADER.size :])) for route in (have, want))
    return (
        not (target or source or tos)
        and kind == rt_type["local"]
        and all(found.get(part) == wanted[part] for part in (_RTA_TABLE, _RTA_OIF))
    )


_HEADER = struct.Struct("=BBBBBBBBI")  # of fib_rule_hdr and of rtmsg alike
_SUPPRESS_NOTHING = (_FRA_SUPPRESS_PREFIXLEN, bytes([0xFF] * 4))
