"""What nftables has installed in a network namespace, in a form that can be compared.

The reader asks the kernel for tables, chains and sets by their names, so what others have
beside them costs nothing: 0.3 ms for a pod's tables, where a listing through libnftables
takes 1.1. It keeps the kernel's own messages, without handles, use counts and the counters'
values. What is left of a message is what makes the same thing again: see `nft_batch`.

A caller finds out what should be there by making it in a scratch netns and reading that. Two
readings are compared byte by byte, so no library's notation comes into it.
"""

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from nodeagent.linux.netlink import Attributes, MalformedError, Netlink, attribute, attributes
from nodeagent.netfilter.errors import wrap_oserror
from nodeagent.netfilter.nfnetlink import (
    HEADER_SIZE,
    NETLINK_NETFILTER,
    NFPROTO_INET,
    NFT_MSG_GETCHAIN,
    NFT_MSG_GETRULE,
    NFT_MSG_GETSET,
    NFT_MSG_GETTABLE,
    header,
    name_attribute,
)

_INET = header(NFPROTO_INET)

# linux/netfilter/nf_tables.h: NFTA_…
_TABLE_NAME, _TABLE_USE, _TABLE_HANDLE, _TABLE_USERDATA = 1, 3, 4, 6
_CHAIN_TABLE, _CHAIN_HANDLE, _CHAIN_NAME, _CHAIN_USE, _CHAIN_COUNTERS = 1, 2, 3, 6, 8
_RULE_TABLE, _RULE_CHAIN, _RULE_HANDLE, _RULE_EXPRESSIONS, _RULE_POSITION = 1, 2, 3, 4, 6
_SET_TABLE, _SET_NAME = 1, 2
# The library's notes, and the kernel's choice of an algorithm and count of elements:
# they say nothing of what the set is.
_SET_USERDATA, _SET_HANDLE, _SET_ALGORITHM, _SET_COUNT = 13, 16, 19, 20
_EXPRESSION_NAME, _EXPRESSION_DATA = 1, 2
_IMMEDIATE_DATA, _VERDICT, _VERDICT_CODE, _VERDICT_CHAIN = 2, 2, 1, 2
_JUMP = -3  # NFT_JUMP
_ATTRIBUTE_HEADER = 4  # bytes
_LENGTH = struct.Struct("=H")  # an attribute's first field
_COUNTER = attribute(1, b"counter\0")  # NFTA_EXPR_NAME comes first
_NEW_COUNTER = attribute(1, _COUNTER)  # NFTA_LIST_ELEM; without values it starts at 0


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain, with its rules in order."""

    settings: bytes
    """The attributes that make it: names, type, hook, priority, policy and flags."""
    rules: tuple[bytes, ...]
    """The attributes that make each."""


@dataclass(frozen=True, slots=True)
class TableState:
    """A table of family inet as it is installed."""

    settings: bytes
    """The attributes that make it: name and flags, and the owner where a process keeps it."""
    comment: bytes
    """The attribute with the table's comment, or nothing: our layout version is in it."""
    members: int
    """Chains, sets, maps and objects together."""
    chains: Mapping[str, Chain]
    sets: Mapping[str, bytes] = field(default_factory=dict)
    """The attributes that make each of the sets that were asked for, without elements."""


Tables = Mapping[str, TableState]
"""By name."""


def read_tables(names: Iterable[str], chains: Sequence[str]) -> Tables:
    """Read the tables `names` of the calling thread's netns, those that are there.

    `chains` are the chains that they may have, see `read_table`. Raises `RulesError`.
    """
    with wrap_oserror("read the rules"), Netlink(NETLINK_NETFILTER) as netlink:
        tables = {name: read_table(netlink, name, chains) for name in names}
        return {name: table for name, table in tables.items() if table is not None}


def read_table(
    netlink: Netlink, name: str, chains: Sequence[str], sets: Iterable[str] = ()
) -> TableState | None:
    """Read one table of family inet; None where there is none.

    `chains` and `sets` are the names that it may have: they are asked for one by one. Only
    where the table has more in it than these, all chains of the netns are listed, and
    those of the table returned, whatever their names. Raises ``OSError``.
    """
    answer = netlink.get(NFT_MSG_GETTABLE, _INET + name_attribute(_TABLE_NAME, name))
    if answer is None:
        return None
    table = _attributes(answer)
    members = int.from_bytes(table[_TABLE_USE], "big")
    found_sets = {each: found for each in sets if (found := _read_set(netlink, name, each))}
    return TableState(
        settings=_without(table, _TABLE_USE, _TABLE_HANDLE, _TABLE_USERDATA),
        comment=_encoded(table, _TABLE_USERDATA),
        members=members,
        chains=_chains(netlink, name, chains, members - len(found_sets)),
        sets=found_sets,
    )


def read_chain(netlink: Netlink, family: int, table: str, chain: str) -> tuple[bytes, ...]:
    """Read the rules of one chain, which must be there, and nothing beside it.

    `family` is an ``NFPROTO_…`` number. Raises ``OSError``.
    """
    return tuple(
        _rule(body)[1]
        for body in netlink.dump(NFT_MSG_GETRULE, _chain_request(family, table, chain))
    )


def read_first_rule(family: int, table: str, chain: str) -> bytes | None:
    """Read the first rule of a chain in the calling thread's netns, however many follow.

    Raises ``OSError``.
    """
    with Netlink(NETLINK_NETFILTER) as netlink:
        body = netlink.first(NFT_MSG_GETRULE, _chain_request(family, table, chain))
    return body and _rule(body)[1]


def count_uses(netlink: Netlink, family: int, table: str, chain: str) -> int | None:
    """How many rules are in a chain or lead to it; None: there is no such chain.

    Raises ``OSError``.
    """
    answer = netlink.get(NFT_MSG_GETCHAIN, header(family) + _chain_names(table, chain))
    return int.from_bytes(_attributes(answer)[_CHAIN_USE], "big") if answer else None


def leads_to(rule: bytes) -> tuple[str, bool] | None:
    """The chain that a rule jumps to, and whether it does so with every packet.

    Raises ``OSError`` for what is no rule.
    """
    elements = attributes(Attributes(rule)[_RULE_EXPRESSIONS])
    expressions = [Attributes(element) for _, element in elements]
    names = [_name(each[_EXPRESSION_NAME]) for each in expressions]
    if not names or names[-1] != "immediate":
        return None
    value = Attributes(Attributes(expressions[-1][_EXPRESSION_DATA])[_IMMEDIATE_DATA])
    verdict = Attributes(value.get(_VERDICT, b""))
    if _VERDICT_CHAIN not in verdict:
        return None
    jump = int.from_bytes(verdict[_VERDICT_CODE], "big", signed=True) == _JUMP
    return _name(verdict[_VERDICT_CHAIN]), jump and set(names[:-1]) <= {"counter"}


def differences(have: Tables, want: Tables) -> Iterator[str]:
    """Say what has to change in `have` to make it `want`."""
    for name in (*want, *(name for name in have if name not in want)):
        if name not in have:
            yield f"table {name} is missing"
        elif name not in want:
            yield f"table {name} is not wanted"
        else:
            for what in table_differences(have[name], want[name]):
                yield f"table {name}: {what}"


def table_differences(have: TableState, want: TableState) -> Iterator[str]:
    """Say what has to change in `have` to make it `want`."""
    if have.comment != want.comment:
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
    for name in sorted(have.sets.keys() | want.sets.keys()):
        if have.sets.get(name) != want.sets.get(name):
            yield f"set {name} {'differs' if name in have.sets else 'is missing'}"
    if _unnamed(have) != _unnamed(want):
        yield "holds sets or objects that are not ours"


def _unnamed(table: TableState) -> int:
    return table.members - len(table.chains) - len(table.sets)


def _chain_differences(have: Chain, want: Chain) -> Iterator[str]:
    if have.settings != want.settings:
        yield "another type, hook, priority or policy"
    if len(have.rules) != len(want.rules):
        yield f"{len(have.rules)} rules instead of {len(want.rules)}"
        return
    for number, (mine, theirs) in enumerate(zip(have.rules, want.rules, strict=True), start=1):
        if mine != theirs:
            yield f"rule {number} differs"


def _read_set(netlink: Netlink, table: str, name: str) -> bytes | None:
    names = name_attribute(_SET_TABLE, table) + name_attribute(_SET_NAME, name)
    answer = netlink.get(NFT_MSG_GETSET, _INET + names)
    if answer is None:
        return None
    return _without(_attributes(answer), _SET_HANDLE, _SET_USERDATA, _SET_ALGORITHM, _SET_COUNT)


def _chains(netlink: Netlink, table: str, names: Sequence[str], expected: int) -> dict[str, Chain]:
    found: dict[str, Attributes] = {}
    for name in names:
        if len(found) == expected:
            break
        if answer := netlink.get(NFT_MSG_GETCHAIN, _INET + _chain_names(table, name)):
            found[name] = _attributes(answer)
    if len(found) != expected:
        # Somebody has put something into the table: only now it matters what else there is.
        chains = (_attributes(body) for body in netlink.dump(NFT_MSG_GETCHAIN, _INET))
        found = {
            _name(chain[_CHAIN_NAME]): chain
            for chain in chains
            if _name(chain[_CHAIN_TABLE]) == table
        }
    rules: dict[str, list[bytes]] = {}
    request = _INET + name_attribute(_RULE_TABLE, table)
    for body in netlink.dump(NFT_MSG_GETRULE, request):
        chain_name, comparable = _rule(body)
        rules.setdefault(chain_name, []).append(comparable)
    return {
        name: Chain(
            # Its use count follows from the rules, which are compared themselves.
            settings=_without(chain, _CHAIN_HANDLE, _CHAIN_USE, _CHAIN_COUNTERS),
            rules=tuple(rules.get(name, ())),
        )
        for name, chain in found.items()
    }


# Quiet pods have the same rules to the byte, and taking them apart is half the cost of reading.
@lru_cache(maxsize=128)
def _rule(body: bytes) -> tuple[str, bytes]:
    """Return the chain of a rule, and the attributes that are compared."""
    rule = _attributes(body)
    return _name(rule[_RULE_CHAIN]), _without(
        rule, _RULE_HANDLE, _RULE_POSITION, _RULE_EXPRESSIONS
    ) + attribute(_RULE_EXPRESSIONS, _uncounted(rule[_RULE_EXPRESSIONS]))


def _uncounted(expressions: bytes) -> bytes:
    """Return a rule's expressions with counters that start at 0."""
    kept, done, offset = b"", 0, 0
    # Cut in place: it is done for each rule at each look.
    while offset < len(expressions):
        (length,) = _LENGTH.unpack_from(expressions, offset)
        if length < _ATTRIBUTE_HEADER or length > len(expressions) - offset:
            raise MalformedError
        end = offset + (length + 3 & ~3)
        if expressions.startswith(_COUNTER, offset + 4):
            kept += expressions[done:offset] + _NEW_COUNTER
            done = end
        offset = end
    return kept + expressions[done:]


def _chain_names(table: str, chain: str) -> bytes:
    return name_attribute(_CHAIN_TABLE, table) + name_attribute(_CHAIN_NAME, chain)


def _chain_request(family: int, table: str, chain: str) -> bytes:
    names = name_attribute(_RULE_TABLE, table) + name_attribute(_RULE_CHAIN, chain)
    return header(family) + names


def _attributes(body: bytes) -> Attributes:
    return Attributes(body[HEADER_SIZE:])


def _without(found: Attributes, *kinds: int) -> bytes:
    return b"".join(attribute(kind, found[kind]) for kind in found if kind not in kinds)


def _encoded(found: Attributes, kind: int) -> bytes:
    return attribute(kind, found[kind]) if kind in found else b""


def _name(payload: bytes) -> str:
    return payload.rstrip(b"\0").decode(errors="replace")
