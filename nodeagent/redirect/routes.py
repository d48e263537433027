"""The policy rule and the local route that take the app's replies back to ztunnel.

Each is described once: `message` gives the bytes with which the entry is added, compared
with what the kernel has, and deleted (L42). When it deletes, the kernel takes the first entry
that has all that the request names, whatever else that entry has. So before a delete it is
checked that the first such entry is the one that is meant.
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from ipaddress import ip_address
from socket import AF_INET6

from pyroute2.netlink.rtnl import (
    RTM_DELROUTE,
    RTM_DELRULE,
    RTM_GETLINK,
    RTM_GETROUTE,
    RTM_NEWROUTE,
    RTM_NEWRULE,
)

from nodeagent.linux.netlink import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    MalformedError,
    Netlink,
    attribute,
    attributes,
)
from nodeagent.linux.policy_routing import (
    FR_ACT_TO_TBL,
    FRA_PRIORITY,
    FRA_PROTOCOL,
    FRA_TABLE,
    HEADER,
    OWN_PROTOCOL,
    RTA_DST,
    RTA_OIF,
    RTA_TABLE,
    header,
    list_routes,
    list_rules,
    lookup,
    number,
    numbers,
    rule_meaning,
    would_take,
)
from nodeagent.netfilter.errors import RulesError
from nodeagent.netfilter.rule import Family
from nodeagent.redirect.rules import REPLY_MARK, REPLY_PRIORITY, REPLY_TABLE

_NUMBER = struct.Struct("=I")

_FRA_FWMARK, _FRA_FWMASK = 10, 16  # linux/fib_rules.h
# linux/rtnetlink.h
_RTA_PRIORITY, _RTA_CACHEINFO, _RTA_PREF = 6, 12, 20
_RTN_LOCAL = 2
_RT_SCOPE_HOST = 254
_IP6_RT_PRIO_USER = 1024  # linux/ipv6_route.h: what an IPv6 route without a metric gets

_MOST_ROUTES = 256
"""Routes with our mark that are read; there is one for each family."""

_LOOPBACK_INDEX = 1  # in every netns: LOOPBACK_IFINDEX
_LINK_HEADER = struct.Struct("=BxHiII")
# linux/if_link.h and ipv6.h
_IFLA_AF_SPEC, _IFLA_INET6_CONF = 26, 2
_IFLA_EXT_MASK, _SKIP_STATISTICS = 29, 1 << 3
_LOOPBACK = _LINK_HEADER.pack(0, 0, _LOOPBACK_INDEX, 0, 0) + attribute(
    _IFLA_EXT_MASK, _NUMBER.pack(_SKIP_STATISTICS)
)
_DISABLE_IPV6 = 26  # DEVCONF_DISABLE_IPV6

_OUR_PREFERENCE = attribute(FRA_PRIORITY, _NUMBER.pack(REPLY_PRIORITY))
_OUR_MARK = attribute(_FRA_FWMARK, _NUMBER.pack(REPLY_MARK.value))

# What the kernel adds to a listing where nothing was set.
_ROUTE_DEFAULTS = frozenset({(_RTA_PREF, b"\0")})


@dataclass(frozen=True, slots=True)
class PolicyRule:
    """A policy rule that has packets with the reply mark look up `table`.

    Without a protocol, as Istio's agent adds it: the kernel compares the protocol of a
    rule that is added, so with one of our own Istio's agent would add a second rule.
    """

    family: Family
    table: int = REPLY_TABLE
    protocol: int = 0

    def message(self) -> bytes:
        """Return the body of a request about this entry."""
        values = {
            FRA_PRIORITY: REPLY_PRIORITY,
            _FRA_FWMARK: REPLY_MARK.value,
            _FRA_FWMASK: REPLY_MARK.mask,
            FRA_TABLE: self.table,
        }
        protocol = attribute(FRA_PROTOCOL, bytes([self.protocol])) if self.protocol else b""
        head = HEADER.pack(self.family.number, 0, 0, 0, 0, 0, 0, FR_ACT_TO_TBL, 0)
        return head + numbers(values) + protocol

    def add(self, netlink: Netlink) -> None:
        """Add the rule, where there is no such rule. Raises ``OSError``."""
        netlink.request(RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL, self.message())

    def remove(self, netlink: Netlink) -> None:
        """Remove one such rule, if there is any.

        Raises ``OSError``, and `RulesError` where the kernel would remove somebody else's.
        """
        rules = read_rules(netlink, self.family)
        if _is_first(self, ((rule, parse_rule(rule)) for rule in rules)):
            netlink.request(RTM_DELRULE, 0, self.message())

    @property
    def command(self) -> str:
        """The arguments of ``ip`` that do the same."""
        mark = f"{REPLY_MARK.value:#x}/{REPLY_MARK.mask:#x}"
        return f"rule add fwmark {mark} pref {REPLY_PRIORITY} lookup {self.table}"

    def __str__(self) -> str:
        return f"policy rule for {self.family}{_in_table(self.table)}"


@dataclass(frozen=True, slots=True)
class LocalRoute:
    """A route that makes every address local in `table`: packets go to sockets of the pod."""

    family: Family
    table: int = REPLY_TABLE
    protocol: int = OWN_PROTOCOL

    @property
    def marked(self) -> bool:
        """Whether the route has the mark of this agent."""
        return self.protocol == OWN_PROTOCOL

    def message(self) -> bytes:
        """Return the body of a request about this entry."""
        values = {RTA_TABLE: self.table, RTA_OIF: _LOOPBACK_INDEX}
        if self.family is Family.V6:
            values[_RTA_PRIORITY] = _IP6_RT_PRIO_USER
        scope = _RT_SCOPE_HOST if self.family is Family.V4 else 0
        head = HEADER.pack(self.family.number, 0, 0, 0, 0, self.protocol, scope, _RTN_LOCAL, 0)
        return head + numbers(values)

    def add(self, netlink: Netlink) -> None:
        """Add the route to a table without a default route. Raises ``OSError``."""
        netlink.request(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, self.message())

    def mark(self, netlink: Netlink) -> "LocalRoute":
        """Give the route our protocol in place; it must be proven to be ours or Istio's.

        Raises ``OSError``.
        """
        marked = replace(self, protocol=OWN_PROTOCOL)
        if not self.marked:
            netlink.request(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, marked.message())
        return marked

    def remove(self, netlink: Netlink) -> None:
        """Remove the route, if it is there.

        Raises ``OSError``, and `RulesError` where the kernel would remove somebody else's.
        """
        routes = read_routes(netlink, self.family, self.table)
        defaults = (route for route in routes if not header(route)[1])
        if _is_first(self, ((route, parse_route(route)) for route in defaults)):
            netlink.request(RTM_DELROUTE, 0, self.message())

    @property
    def command(self) -> str:
        """The arguments of ``ip`` that do the same."""
        return f"route add local default dev lo table {self.table} protocol {self.protocol}"

    def __str__(self) -> str:
        return f"local route for {self.family}{_in_table(self.table)}"


Entry = PolicyRule | LocalRoute
"""One thing in the pod's routing that is there because of us."""


@lru_cache(maxsize=64)  # quiet pods have the same ones
def parse_rule(found: bytes) -> PolicyRule | None:
    """Read a rule of the kernel's listing; None for one that leads no replies to ztunnel.

    A rule with any further condition is somebody else's.
    """
    if not has_our_mark(found):  # a pod may have any number of rules
        return None
    family = _family(found)
    known = dict(attributes(found[HEADER.size :]))
    protocol = int.from_bytes(known.get(FRA_PROTOCOL, b""))
    rule = PolicyRule(family, lookup(found) or 0, min(protocol, 255))
    return rule if rule_meaning(found) == rule_meaning(rule.message()) else None


def has_our_mark(rule: bytes) -> bool:
    """Whether a rule of the kernel's listing may be ours: to find out costs 0.3 µs, not 20."""
    return _OUR_PREFERENCE in rule and _OUR_MARK in rule


@lru_cache(maxsize=64)
def parse_route(found: bytes) -> LocalRoute | None:
    """Read a route of the kernel's listing; None for one that is not the local default."""
    head = header(found)
    table = number(found, RTA_TABLE, head[4])
    route = LocalRoute(_family(found), table, head[5])
    return route if _meaning_of_route(found) == _meaning_of_route(route.message()) else None


def destination(route: bytes) -> str:
    """Where a route of the kernel's listing leads to, as `ip` writes it."""
    length = header(route)[1]
    payload = dict(attributes(route[HEADER.size :])).get(RTA_DST)
    if payload is None:
        return "default"
    if len(payload) not in {4, 16}:
        raise MalformedError
    return f"{ip_address(payload)}/{length}"


def read_rules(netlink: Netlink, family: Family) -> list[bytes]:
    """All policy rules, in the kernel's order. Raises ``OSError``."""
    return list_rules(netlink, family.number)


def read_routes(netlink: Netlink, family: Family, table: int) -> list[bytes]:
    """The routes in `table`, in the kernel's order, or the first of too many.

    Raises ``OSError``.
    """
    return list_routes(netlink, family.number, table)


def read_marked_routes(netlink: Netlink, family: Family) -> list[LocalRoute]:
    """Our own routes, whatever table they are in. Raises ``OSError``."""
    request = HEADER.pack(family.number, 0, 0, 0, 0, OWN_PROTOCOL, 0, _RTN_LOCAL, 0)
    # A kernel before 4.20 ignores the filter.
    routes = map(parse_route, netlink.dump(RTM_GETROUTE, request, most=_MOST_ROUTES))
    return [route for route in routes if route is not None and route.marked]


def loopback_has_ipv6(netlink: Netlink) -> bool:
    """Whether IPv6 is enabled on the loopback interface. Raises ``OSError``."""
    # Not through /proc/sys: a look-up there passes every other netns' entry of that name.
    loopback = netlink.get(RTM_GETLINK, _LOOPBACK)
    assert loopback is not None  # noqa: S101 - there is no netns without
    families = dict(attributes(dict(attributes(loopback[_LINK_HEADER.size :]))[_IFLA_AF_SPEC]))
    if AF_INET6 not in families:  # a kernel without IPv6 at all
        return False
    settings = dict(attributes(families[AF_INET6]))[_IFLA_INET6_CONF]
    (disabled,) = struct.unpack_from("=i", settings, 4 * _DISABLE_IPV6)
    return bool(disabled == 0)


def _is_first(entry: Entry, installed: Iterable[tuple[bytes, Entry | None]]) -> bool:
    """Whether the kernel would delete `entry` at its own request; False: nothing is there."""
    request = entry.message()
    for found, meaning in installed:
        if would_take(request, found):
            if meaning != entry:
                raise RulesError(
                    f"cannot remove the {entry}: one of somebody else, with more conditions,"
                    " comes before it, and the kernel would remove that one; remove it first"
                )
            return True
    return False


def _meaning_of_route(message: bytes) -> object:
    family, target, source, tos, _, protocol, scope, kind, _ = header(message)
    parts = {
        (part, payload)
        for part, payload in attributes(message[HEADER.size :])
        if part != _RTA_CACHEINFO
    }
    return family, target, source, tos, protocol, scope, kind, parts - _ROUTE_DEFAULTS


def _family(message: bytes) -> Family:
    for family in Family:
        if message[0] == family.number:
            return family
    raise MalformedError


def _in_table(table: int) -> str:
    return "" if table == REPLY_TABLE else f" in table {table}"
