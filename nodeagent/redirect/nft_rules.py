"""The rules of one pod in nft's own language, and the library that applies them."""

import errno
import os
from collections.abc import Iterable, Iterator
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network

from nodeagent.netfilter.errors import RedirectError, explain
from nodeagent.netfilter.libnftables import Library
from nodeagent.redirect.rules import (
    LAYOUT_VERSION,
    Accept,
    Address,
    Family,
    Hook,
    Is,
    Mark,
    Not,
    PodRedirect,
    Redirect,
    RestoreMark,
    Return,
    Rule,
    SetConnmark,
    SetZone,
    Table,
    Verdict,
    pod_rules,
)

_PREFIX = "istio-ambient-"
TABLE_NAMES = tuple(f"{_PREFIX}{table}" for table in Table)
"""The tables of family inet that are ours, with everything in them."""

CHAIN_NAMES = tuple(name for hook in Hook for name in (f"istio-{hook}", str(hook)))
"""The chains that they may have, in the order in which they are made.

Istio's agent calls them so, too.
"""

_BASE_CHAINS = {
    (Table.MANGLE, Hook.PREROUTING): "type filter hook prerouting priority -150",
    (Table.MANGLE, Hook.OUTPUT): "type route hook output priority -150",
    (Table.MANGLE, Hook.POSTROUTING): "type filter hook postrouting priority -150",
    (Table.NAT, Hook.PREROUTING): "type nat hook prerouting priority -100",
    (Table.NAT, Hook.OUTPUT): "type nat hook output priority -100",
    (Table.RAW, Hook.PREROUTING): "type filter hook prerouting priority -300",
    (Table.RAW, Hook.OUTPUT): "type filter hook output priority -300",
}
_BEFORE_TRANSLATIONS = "type nat hook prerouting priority -101"
"""Of two chains with one priority the kernel asks the later one first.

A virtual machine's translation, at -100, comes up when its pod is in the mesh already,
and would take what is meant for ztunnel.
"""
_NFPROTO = {Family.V4: "ipv4", Family.V6: "ipv6"}
_ERRNO = {os.strerror(number): number for number in errno.errorcode}


def render(spec: PodRedirect, *, replacing: Iterable[str] = TABLE_NAMES) -> str:
    """Return the text for ``nft -f`` that makes `spec` true in one transaction.

    The tables named in `replacing` go in the same transaction, with all that is
    in them. By default that is all of ours, whether they stand or not; it costs
    0.3 ms, so one who has looked names those that stand.
    """
    return render_removal(replacing) + _render_tables(spec)


def render_removal(names: Iterable[str]) -> str:
    """Return the text that removes the tables `names`, whether they stand or not."""
    # Deleting a table that is not there fails the transaction: it is made first.
    return "".join(f"table inet {name}\ndelete table inet {name}\n" for name in names)


def apply(text: str) -> None:
    """Hand `text` to the kernel as one transaction, in the calling thread's namespace.

    Raises `RedirectError`; nothing has changed then.
    """
    # The library's socket stays where it was opened, so it lives for this call only.
    # Of several lines it shows the first in an error, so it gets one.
    library = Library()
    try:
        library.apply(text.replace("\n", ";").replace("\t", " "))
    except RedirectError as error:
        raise RedirectError(_explain_refusal(str(error))) from error
    finally:
        library.close()


@lru_cache(maxsize=64)
def _render_tables(spec: PodRedirect) -> str:
    # Most pods of a node have the same text, and it takes a third of the set-up's time.
    rules = pod_rules(spec)
    return "".join(
        _render_table(
            table,
            [rule for rule in rules if rule.table is table],
            before_translations=bool(spec.reroute_interfaces),
        )
        for table in Table
        if any(rule.table is table for rule in rules)
    )


def _render_table(table: Table, rules: list[Rule], *, before_translations: bool) -> str:
    lines = [
        f"table inet {_PREFIX}{table} {{",
        f'\tcomment "nodeagent layout {LAYOUT_VERSION}"',
    ]
    for hook in Hook:
        chain = [rule for rule in rules if rule.hook is hook]
        if chain:
            base = _BASE_CHAINS[table, hook]
            if before_translations and (table, hook) == (Table.NAT, Hook.PREROUTING):
                base = _BEFORE_TRANSLATIONS
            lines += [
                f"\tchain istio-{hook} {{",
                *(f"\t\t{_render_rule(rule)}" for rule in chain),
                "\t}",
                f"\tchain {hook} {{",
                f"\t\t{base}; policy accept;",
                f"\t\tcounter jump istio-{hook}",
                "\t}",
            ]
    return "\n".join([*lines, "}", ""])


def _render_rule(rule: Rule) -> str:
    return " ".join([*_conditions(rule), "counter", _verdict(rule.verdict)])


def _conditions(rule: Rule) -> Iterator[str]:
    if rule.arrives_on:
        yield f"iifname {_operand(rule.arrives_on)}"
    if rule.leaves_by:
        yield f"oifname {_operand(rule.leaves_by)}"
    if len(rule.families) == 1 and not (rule.source or rule.destination):
        yield f"meta nfproto {_NFPROTO[rule.families[0]]}"
    if rule.source:
        yield f"{_header(rule.source.value)} saddr {_operand(rule.source)}"
    if rule.destination:
        yield f"{_header(rule.destination.value)} daddr {_operand(rule.destination)}"
    yield from _transport(rule)
    if rule.mark:
        yield _mark("meta mark", rule.mark)
    if rule.connmark:
        yield _mark("ct mark", rule.connmark)
    if rule.direction:
        yield f"ct direction {rule.direction}"


def _transport(rule: Rule) -> Iterator[str]:
    if rule.source_port:
        yield f"{rule.protocol} sport {_operand(rule.source_port)}"
    if rule.destination_port:
        yield f"{rule.protocol} dport {_operand(rule.destination_port)}"
    if rule.opening:
        yield "tcp flags & (fin | syn | rst | ack) == syn"
    elif rule.protocol and not (rule.source_port or rule.destination_port):
        yield f"meta l4proto {rule.protocol}"


def _verdict(verdict: Verdict) -> str:
    match verdict:
        case Redirect(port):
            return f"redirect to :{port}"
        case SetConnmark(mark):
            return f"ct mark set ct mark & {~mark.mask & 0xFFFF_FFFF:#x} | {mark.value:#x}"
        case RestoreMark():
            return "meta mark set ct mark"
        case SetZone(zone):
            return f"ct zone set {zone}"
        case Accept():
            return "accept"
        case Return():
            return "return"


def _operand(condition: Is[object] | Not[object]) -> str:
    value = condition.value
    text = f'"{value}"' if isinstance(value, str) else str(value)
    return f"!= {text}" if isinstance(condition, Not) else text


def _mark(name: str, condition: Is[Mark] | Not[Mark]) -> str:
    sign = "!=" if isinstance(condition, Not) else "=="
    return f"{name} & {condition.value.mask:#x} {sign} {condition.value.value:#x}"


def _header(address: Address) -> str:
    return "ip" if isinstance(address, IPv4Address | IPv4Network) else "ip6"


def _explain_refusal(errors: str) -> str:
    """Make one line of the library's report: the reason, and the statement that it points to."""
    lines = [*errors.splitlines(), "", "", ""]
    reason = lines[0].rpartition(": ")[2]
    if reason in _ERRNO:
        reason = explain(_ERRNO[reason])
    place = lines[2].find("^")
    start = lines[1].rfind(";", 0, max(place, 0)) + 1
    statement = lines[1][start:].partition(";")[0].strip()
    return f"nftables refused the rules: {reason}; at: {statement}"
