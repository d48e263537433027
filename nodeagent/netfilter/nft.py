"""nftables' own language: a rule as text, and the library that hands texts to the kernel."""

from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network

from nodeagent.netfilter.libnftables import Library
from nodeagent.netfilter.rule import (
    Accept,
    Address,
    Family,
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

_NFPROTO = {Family.V4: "ipv4", Family.V6: "ipv6"}


def render_rule(rule: Rule) -> str:
    """Return `rule` as a line of a chain, with a counter."""
    return " ".join([*_conditions(rule), "counter", _verdict(rule.verdict)])


def render_removal(names: Iterable[str]) -> str:
    """Return the text that removes the tables `names` (family inet), there or not."""
    # Deleting a table that is not there fails the transaction: it is made first.
    return "".join(f"table inet {name}\ndelete table inet {name}\n" for name in names)


def apply(text: str) -> None:
    """Hand `text` to the kernel as one transaction, in the calling thread's netns.

    Raises `RulesError`; nothing has changed then.
    """
    library = Library()  # for this call only: its socket stays in the netns of this thread
    try:
        library.apply(text)
    finally:
        library.close()


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
