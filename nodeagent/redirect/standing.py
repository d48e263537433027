"""What nftables has of ours in a network namespace, in a form that can be compared.

It is read as the kernel's own messages, with the handles and the counters'
values left out: 0.3 ms for all of it where a listing through libnftables takes
1.1, whatever others have put beside it, and no library's notation comes into it.
"""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

from nodeagent.redirect.errors import translated
from nodeagent.redirect.netlink import Netlink, attribute, attributes
from nodeagent.redirect.nftables import TABLE_NAMES, apply, render
from nodeagent.redirect.rules import PodRedirect
from nodeagent.redirect.scratch import in_scratch_namespace

# linux/netfilter/nf_tables.h and nfnetlink.h
_NETLINK_NETFILTER = 12
_NFNL_SUBSYS_NFTABLES = 10 << 8
_GETTABLE = _NFNL_SUBSYS_NFTABLES | 1
_GETCHAIN = _NFNL_SUBSYS_NFTABLES | 4
_GETRULE = _NFNL_SUBSYS_NFTABLES | 7
_NFPROTO_INET = 1
_HEADER = struct.pack("=BBH", _NFPROTO_INET, 0, 0)

_TABLE_NAME, _TABLE_USE, _TABLE_HANDLE, _TABLE_USERDATA = 1, 3, 4, 6
_CHAIN_TABLE, _CHAIN_HANDLE, _CHAIN_NAME, _CHAIN_USE, _CHAIN_COUNTERS = 1, 2, 3, 6, 8
_RULE_TABLE, _RULE_CHAIN, _RULE_HANDLE, _RULE_EXPRESSIONS, _RULE_POSITION = 1, 2, 3, 4, 6
_COUNTER = attribute(1, b"counter\0")  # NFTA_EXPR_NAME comes first

_Attributes = Mapping[int, bytes]


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain, with its rules in order."""

    settings: _Attributes
    """Type, hook, priority, policy and flags."""
    rules: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Standing:
    """One of our tables as it stands."""

    settings: _Attributes
    """Flags, and the owner where a process keeps it."""
    layout: bytes
    """The comment, as it is stored: the layout version is in it (L23)."""
    members: int
    """Chains, sets, maps and objects together."""
    chains: Mapping[str, Chain]


Tables = Mapping[str, Standing]
"""By name."""


def read() -> Tables:
    """Read our tables in the calling thread's namespace. Raises `RedirectError`."""
    with translated("read the rules"), Netlink(_NETLINK_NETFILTER) as netlink:
        tables = [_attributes(body) for body in netlink.dump(_GETTABLE, _HEADER)]
        ours = {
            name: table for table in tables if (name := _name(table[_TABLE_NAME])) in TABLE_NAMES
        }
        if not ours:
            return {}
        chains = [_attributes(body) for body in netlink.dump(_GETCHAIN, _HEADER)]
        return {
            name: Standing(
                settings=_without(table, _TABLE_USE, _TABLE_HANDLE, _TABLE_USERDATA),
                layout=table.get(_TABLE_USERDATA, b""),
                members=int.from_bytes(table[_TABLE_USE], "big"),
                chains=_chains(netlink, name, chains),
            )
            for name, table in ours.items()
        }


@lru_cache(maxsize=64)
def reference(spec: PodRedirect) -> Tables:
    """What `read` gives where `spec` is true and nothing else was done.

    Found out by doing it, in a namespace that ends with the thread that it is
    done in. Pods differ in few ways, so it is done a few times in the agent's
    life; 64 keeps a tenant with many interface lists from growing it.
    Raises `RedirectError`.
    """

    def done() -> Tables:
        apply(render(spec, replacing=()))
        return read()

    return in_scratch_namespace(done)


def differences(have: Tables, want: Tables) -> Iterator[str]:
    """Say what has to change in `have` to make it `want`."""
    for name in TABLE_NAMES:
        if name not in have and name in want:
            yield f"table {name} is missing"
        elif name in have and name not in want:
            yield f"table {name} is not wanted"
        elif name in have:
            for what in _table_differences(have[name], want[name]):
                yield f"table {name}: {what}"


def _table_differences(have: Standing, want: Standing) -> Iterator[str]:
    if have.layout != want.layout:
        yield "another layout version"
    if have.settings != want.settings:
        yield "other flags"
    for name in sorted(have.chains.keys() | want.chains.keys()):
        if name not in have.chains:
            yield f"chain {name} is missing"
        elif name not in want.chains:
            yield f"chain {name} is not ours"
        else:
            for what in _chain_differences(have.chains[name], want.chains[name]):
                yield f"chain {name}: {what}"
    if have.members - len(have.chains) != want.members - len(want.chains):
        yield "holds sets or objects that are not ours"


def _chain_differences(have: Chain, want: Chain) -> Iterator[str]:
    if have.settings != want.settings:
        yield "another type, hook, priority or policy"
    if len(have.rules) != len(want.rules):
        yield f"{len(have.rules)} rules instead of {len(want.rules)}"
        return
    for number, (mine, theirs) in enumerate(zip(have.rules, want.rules, strict=True), start=1):
        if mine != theirs:
            yield f"rule {number} differs"


def _chains(netlink: Netlink, table: str, chains: list[_Attributes]) -> dict[str, Chain]:
    rules: dict[str, list[bytes]] = {}
    request = _HEADER + attribute(_RULE_TABLE, table.encode() + b"\0")
    for body in netlink.dump(_GETRULE, request):
        rule = _attributes(body)
        rules.setdefault(_name(rule[_RULE_CHAIN]), []).append(_comparable(rule))
    return {
        name: Chain(
            # Its use count follows from the rules, which are compared themselves.
            settings=_without(chain, _CHAIN_HANDLE, _CHAIN_USE, _CHAIN_COUNTERS),
            rules=tuple(rules.get(name, ())),
        )
        for chain in chains
        if _name(chain[_CHAIN_TABLE]) == table and (name := _name(chain[_CHAIN_NAME]))
    }


def _comparable(rule: _Attributes) -> bytes:
    parts = [*_without(rule, _RULE_HANDLE, _RULE_POSITION, _RULE_EXPRESSIONS).values()]
    for _, expression in attributes(rule[_RULE_EXPRESSIONS]):
        parts.append(_COUNTER if expression.startswith(_COUNTER) else expression)
    return b"".join(parts)


def _attributes(body: bytes) -> _Attributes:
    return dict(attributes(body[len(_HEADER) :]))


def _without(attributes: _Attributes, *kinds: int) -> _Attributes:
    return {kind: payload for kind, payload in attributes.items() if kind not in kinds}


def _name(payload: bytes) -> str:
    return payload.rstrip(b"\0").decode(errors="replace")
