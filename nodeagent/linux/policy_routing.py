"""Policy rules and routes as rtnetlink has them: what is in them, and what a delete would hit.

Rules and routes of this agent's carry `OWN_PROTOCOL`. Who adds such an entry describes it once
and compares the kernel's listing with that description by `rule_meaning`. Layouts are in
linux/fib_rules.h and linux/rtnetlink.h.
"""

import struct

from pyroute2.netlink.rtnl import RTM_GETROUTE, RTM_GETRULE

from nodeagent.linux.netlink import MalformedError, Netlink, attribute, attributes

OWN_PROTOCOL = 111
"""``rtm_protocol`` or ``FRA_PROTOCOL`` of what this agent adds: the mark that it is ours.

Nobody has registered this number in iproute2's ``rt_protos``. `ip` and Istio's agent
replace and delete such an entry like any other: they name no protocol.
"""

# Of fib_rule_hdr and of rtmsg alike: family, destination's length, source's length,
# TOS, table, two reserved bytes or protocol and scope, action or type, flags.
HEADER = struct.Struct("=BBBBBBBBI")
_NUMBER = struct.Struct("=I")

FRA_DST, FRA_SRC, FRA_IIFNAME, FRA_PRIORITY, FRA_TABLE, FRA_PROTOCOL = 1, 2, 3, 6, 15, 21
FR_ACT_TO_TBL = 1
RTA_DST, RTA_OIF, RTA_TABLE = 1, 4, 15
_FRA_SUPPRESS_PREFIXLEN, _FRA_PAD = 14, 18
_FIB_RULE_INVERT = 2
_BEYOND_A_BYTE = {0, 252}  # RT_TABLE_UNSPEC, RT_TABLE_COMPAT

_MOST_ROUTES = 256
"""Routes that are read of a table; those that matter here have a few."""

# Attributes that the kernel adds to a listing where nothing was set.
_RULE_DEFAULTS = frozenset({(_FRA_SUPPRESS_PREFIXLEN, b"\xff" * 4), (FRA_PROTOCOL, b"\0")})


def header(message: bytes) -> tuple[int, ...]:
    """The numbers of the `HEADER`. Raises `MalformedError`."""
    if len(message) < HEADER.size:
        raise MalformedError
    return HEADER.unpack_from(message)


def numbers(values: dict[int, int]) -> bytes:
    """Encode attributes that are 32-bit numbers."""
    return b"".join(attribute(kind, _NUMBER.pack(value)) for kind, value in values.items())


def number(message: bytes, kind: int, default: int) -> int:
    """The number in the attribute `kind`, or `default`. Raises `MalformedError`."""
    payload = dict(attributes(message[HEADER.size :])).get(kind)
    if payload is None:
        return default
    if len(payload) != _NUMBER.size:
        raise MalformedError
    return int(_NUMBER.unpack(payload)[0])


def lookup(rule: bytes) -> int | None:
    """The table that a rule of the kernel's listing leads to, if it leads to one."""
    _, _, _, _, table, _, _, action, _ = header(rule)
    if action != FR_ACT_TO_TBL:
        return None
    # What does not fit the header's byte is in an attribute.
    return number(rule, FRA_TABLE, table) if table in _BEYOND_A_BYTE else table


def preference(rule: bytes) -> int:
    """The preference (priority) of a rule of the kernel's listing: the lowest is asked first."""
    return number(rule, FRA_PRIORITY, 0)


def list_rules(netlink: Netlink, family: int) -> list[bytes]:
    """All policy rules, in the kernel's order. Raises ``OSError``."""
    return netlink.dump(RTM_GETRULE, HEADER.pack(family, *[0] * 8))


def list_routes(netlink: Netlink, family: int, table: int) -> list[bytes]:
    """The routes in `table`, in the kernel's order, or the first of too many.

    Raises ``OSError``.
    """
    request = HEADER.pack(family, *[0] * 8) + numbers({RTA_TABLE: table})
    try:
        return netlink.dump(RTM_GETROUTE, request, most=_MOST_ROUTES)
    except FileNotFoundError:  # a table that never had a route
        return []


def would_take(request: bytes, found: bytes) -> bool:
    """Whether the kernel would delete `found` at `request`: what that leaves out counts as any."""
    asked, there = header(request), header(found)
    known = dict(attributes(found[HEADER.size :]))
    return all(mine in {0, theirs} for mine, theirs in zip(asked, there, strict=True)) and all(
        known.get(kind) == payload for kind, payload in attributes(request[HEADER.size :])
    )


def rule_meaning(message: bytes) -> object:
    """All that a rule says, to be compared: of a request, or of the kernel's listing."""
    family, target, source, tos, _, _, _, action, flags = header(message)
    conditions = {
        (kind, payload) for kind, payload in attributes(message[HEADER.size :]) if kind != _FRA_PAD
    }
    inverted = flags & _FIB_RULE_INVERT
    return family, target, source, tos, action, inverted, conditions - _RULE_DEFAULTS
