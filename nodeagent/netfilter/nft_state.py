"""What nftables has of ours in a network namespace, in a form that can be compared.

It is read as the kernel's own messages, with the handles and the counters'
values left out: 0.3 ms for all of it where a listing through libnftables takes
1.1, whatever others have put beside it, and no library's notation comes into it.
What is left of a message is what makes the same thing again: see `batch`.
"""

import struct
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

from nodeagent.linux.netlink import Attributes, MalformedError, Netlink, attribute, attributes
from nodeagent.netfilter.errors import translated
from nodeagent.netfilter.scratch import in_scratch_namespace
from nodeagent.redirect.nft_rules import CHAIN_NAMES, TABLE_NAMES, apply, render
from nodeagent.redirect.rules import PodRedirect

# linux/netfilter/nf_tables.h and nfnetlink.h
_NETLINK_NETFILTER = 12
_NFNL_SUBSYS_NFTABLES = 10 << 8
_GETTABLE = _NFNL_SUBSYS_NFTABLES | 1
_GETCHAIN = _NFNL_SUBSYS_NFTABLES | 4
_GETRULE = _NFNL_SUBSYS_NFTABLES | 7
_NFPROTO_INET = 1
HEADER = struct.pack("=BBH", _NFPROTO_INET, 0, 0)
"""Of every message about family inet."""

_TABLE_NAME, _TABLE_USE, _TABLE_HANDLE, _TABLE_USERDATA = 1, 3, 4, 6
_CHAIN_TABLE, _CHAIN_HANDLE, _CHAIN_NAME, _CHAIN_USE, _CHAIN_COUNTERS = 1, 2, 3, 6, 8
_RULE_TABLE, _RULE_CHAIN, _RULE_HANDLE, _RULE_EXPRESSIONS, _RULE_POSITION = 1, 2, 3, 4, 6
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
class Standing:
    """One of our tables as it stands."""

    settings: bytes
    """The attributes that make it: name and flags, and the owner where a process keeps it."""
    layout: bytes
    """The attribute with the comment, if there is one: the layout version is in it (L23)."""
    members: int
    """Chains, sets, maps and objects together."""
    chains: Mapping[str, Chain]


Tables = Mapping[str, Standing]
"""By name."""


def read() -> Tables:
    """Read our tables in the calling thread's namespace. Raises `RedirectError`.

    Each table and each chain is asked for by its name: what others have costs nothing.
    """
    with translated("read the rules"), Netlink(_NETLINK_NETFILTER) as netlink:
        tables = {name: _table(netlink, name) for name in TABLE_NAMES}
        return {name: table for name, table in tables.items() if table is not None}


def _table(netlink: Netlink, name: str) -> Standing | None:
    answer = netlink.get(_GETTABLE, HEADER + attribute(_TABLE_NAME, name.encode() + b"\0"))
    if answer is None:
        return None
    table = _attributes(answer)
    members = int.from_bytes(table[_TABLE_USE], "big")
    return Standing(
        settings=_without(table, _TABLE_USE, _TABLE_HANDLE, _TABLE_USERDATA),
        layout=_encoded(table, _TABLE_USERDATA),
        members=members,
        chains=_chains(netlink, name, members),
    )


def reference(spec: PodRedirect) -> Tables:
    """What `read` gives where `spec` is true and nothing else was done.

    Found out by doing it, in a namespace that ends with the thread that it is
    done in. Pods differ in few ways, so it is done a few times in the agent's
    life. Raises `RedirectError`.
    """
    # The first pods come all at once, with the same rules: the others wait for the first's.
    with _finding_out:
        return _found_out(spec)


_finding_out = threading.Lock()


@lru_cache(maxsize=64)  # a tenant with many interface lists must not make it grow
def _found_out(spec: PodRedirect) -> Tables:
    def done() -> Tables:
        apply(render(spec, replacing=()))
        return read()

    return in_scratch_namespace(done)


def read_chain(netlink: Netlink, family: int, table: str, chain: str) -> tuple[bytes, ...]:
    """Read the rules of one chain, which stands, whatever there is beside it.

    `family` is an ``NFPROTO_…`` number. Raises ``OSError``.
    """
    return tuple(
        _rule(body)[1] for body in netlink.dump(_GETRULE, _chain_request(family, table, chain))
    )


def read_first_rule(family: int, table: str, chain: str) -> bytes | None:
    """Read the first rule of a chain in the calling thread's namespace, however many follow.

    Raises ``OSError``.
    """
    with Netlink(_NETLINK_NETFILTER) as netlink:
        body = netlink.first(_GETRULE, _chain_request(family, table, chain))
    return body and _rule(body)[1]


def count_uses(netlink: Netlink, family: int, table: str, chain: str) -> int | None:
    """How many rules stand in a chain or lead to it; None: there is no such chain.

    Raises ``OSError``.
    """
    answer = netlink.get(_GETCHAIN, _header(family) + _chain_names(table, chain))
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


def _chains(netlink: Netlink, table: str, members: int) -> dict[str, Chain]:
    found: dict[str, Attributes] = {}
    for name in CHAIN_NAMES:
        if len(found) == members:
            break
        if answer := netlink.get(_GETCHAIN, HEADER + _chain_names(table, name)):
            found[name] = _attributes(answer)
    if len(found) != members:
        # Somebody has put something into it: only now it matters what else there is.
        chains = (_attributes(body) for body in netlink.dump(_GETCHAIN, HEADER))
        found = {
            _name(chain[_CHAIN_NAME]): chain
            for chain in chains
            if _name(chain[_CHAIN_TABLE]) == table
        }
    rules: dict[str, list[bytes]] = {}
    request = HEADER + attribute(_RULE_TABLE, table.encode() + b"\0")
    for body in netlink.dump(_GETRULE, request):
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


# Quiet pods have the same rules to the byte: taking them apart is half the price of a look.
@lru_cache(maxsize=128)
def _rule(body: bytes) -> tuple[str, bytes]:
    """Name the chain, and return what is compared."""
    rule = _attributes(body)
    return _name(rule[_RULE_CHAIN]), _without(
        rule, _RULE_HANDLE, _RULE_POSITION, _RULE_EXPRESSIONS
    ) + attribute(_RULE_EXPRESSIONS, _uncounted(rule[_RULE_EXPRESSIONS]))


def _uncounted(expressions: bytes) -> bytes:
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


def _header(family: int) -> bytes:
    return struct.pack("=BBH", family, 0, 0)


def _chain_names(table: str, chain: str) -> bytes:
    return attribute(_CHAIN_TABLE, table.encode() + b"\0") + attribute(
        _CHAIN_NAME, chain.encode() + b"\0"
    )


def _chain_request(family: int, table: str, chain: str) -> bytes:
    names = attribute(_RULE_TABLE, table.encode() + b"\0")
    return _header(family) + names + attribute(_RULE_CHAIN, chain.encode() + b"\0")


def _attributes(body: bytes) -> Attributes:
    return Attributes(body[len(HEADER) :])


def _without(found: Attributes, *kinds: int) -> bytes:
    return b"".join(attribute(kind, found[kind]) for kind in found if kind not in kinds)


def _encoded(found: Attributes, kind: int) -> bytes:
    return attribute(kind, found[kind]) if kind in found else b""


def _name(payload: bytes) -> str:
    return payload.rstrip(b"\0").decode(errors="replace")
