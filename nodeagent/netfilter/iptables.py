"""iptables' own language: a rule as the options of an ``-A`` line of ``iptables-restore``."""

from collections.abc import Iterator

from nodeagent.netfilter.rule import (
    Accept,
    Is,
    Mark,
    Not,
    Redirect,
    RestoreMark,
    Return,
    Rule,
    SetConnmark,
    SetZone,
    Verdict,
)

FIRST = (1,)
"""The positions that `Chain.jumps` should have: one jump, as the first rule of its hook."""


def render_rule(rule: Rule) -> str:
    """Return conditions and target of `rule`, in the order in which the programs list them."""
    return " ".join([*_conditions(rule), f"-j {_target(rule.verdict)}"])


def _conditions(rule: Rule) -> Iterator[str]:
    if rule.arrives_on:
        yield _operand("-i", rule.arrives_on)
    if rule.leaves_by:
        yield _operand("-o", rule.leaves_by)
    if rule.source:
        yield _operand("-s", rule.source)
    if rule.destination:
        yield _operand("-d", rule.destination)
    if rule.protocol:
        yield f"-p {rule.protocol}"
    if transport := list(_transport(rule)):
        yield " ".join([f"-m {rule.protocol}", *transport])
    if rule.mark:
        yield f"-m mark {_mark(rule.mark)}"
    if rule.connmark:
        yield f"-m connmark {_mark(rule.connmark)}"
    if rule.direction:
        yield f"-m conntrack --ctdir {rule.direction.upper()}"


def _transport(rule: Rule) -> Iterator[str]:
    if rule.source_port:
        yield _operand("--sport", rule.source_port)
    if rule.destination_port:
        yield _operand("--dport", rule.destination_port)
    if rule.opening:
        yield "--tcp-flags FIN,SYN,RST,ACK SYN"


def _target(verdict: Verdict) -> str:
    match verdict:
        case Redirect(port):
            return f"REDIRECT --to-ports {port}"
        case SetConnmark(mark):
            return f"CONNMARK --set-xmark {mark.value:#x}/{mark.mask:#x}"
        case RestoreMark():
            return "CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff"
        case SetZone(zone):
            return f"CT --zone {zone}"
        case Accept():
            return "ACCEPT"
        case Return():
            return "RETURN"


def _operand(option: str, condition: Is[object] | Not[object]) -> str:
    sign = "! " if isinstance(condition, Not) else ""
    return f"{sign}{option} {condition.value}"


def _mark(condition: Is[Mark] | Not[Mark]) -> str:
    sign = "! " if isinstance(condition, Not) else ""
    return f"{sign}--mark {condition.value.value:#x}/{condition.value.mask:#x}"
