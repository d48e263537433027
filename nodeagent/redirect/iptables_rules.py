"""Our chains in the language of ``iptables-restore`` and ``iptables-save``."""

from collections.abc import Collection, Iterable, Iterator, Mapping

from nodeagent.netfilter.iptables_save import Chain, statements
from nodeagent.redirect.rules import (
    LAYOUT_VERSION,
    Accept,
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

CHAINS = {
    Hook.PREROUTING: "ISTIO_PRERT",
    Hook.OUTPUT: "ISTIO_OUTPUT",
    Hook.POSTROUTING: "ISTIO_REROUTE",
}
"""What is ours in each of the tables, in both families.

The first two are Istio's, too. The third is not called ``ISTIO_POSTRT``: that is the
host's, and a pod may be the host of a nested cluster.
"""

FIRST = (1,)
"""The one position at which our jump should stand."""

# Each table is a transaction of its own: what carries replies stands before the
# redirection that makes it needed, and goes after it.
_ORDER = (Table.MANGLE, Table.RAW, Table.NAT)

Place = tuple[Table, Hook]
Standing = Mapping[Place, Chain[bytes]]
"""Our chains in one family."""


def render(spec: PodRedirect, family: Family, *, replacing: Standing | None = None) -> str:
    """Return the input for ``iptables-restore --noflush`` that makes `spec` true in `family`.

    One transaction per table. `replacing` is what was read there; without it, nothing
    of ours stands. A jump that stands once and first is not touched, so that the
    packets of a pod that is right never miss it.
    """
    return _render([rule for rule in pod_rules(spec) if family in rule.families], replacing or {})


def render_removal(standing: Standing) -> str:
    """Return the input for ``iptables-restore --noflush`` that removes `standing`."""
    return _render([], standing)


def has_rules_of_others(listing: str) -> bool:
    """Whether a listing has a rule or chain that neither this agent nor Istio's has made.

    A chain counts without rules: kubelet marks its own choice with an empty one.
    """
    return any(
        statement.startswith("-A ") or (statement.startswith(":") and " - [" in statement)
        for statement in statements(listing)
        if "ISTIO_" not in statement
    )


def _render(rules: Collection[Rule], standing: Standing) -> str:
    sections = []
    for table in _ORDER if rules else reversed(_ORDER):
        lines = [*_table_lines(table, [rule for rule in rules if rule.table is table], standing)]
        if lines:
            sections += [f"*{table}", *lines, "COMMIT"]
    return "".join(f"{line}\n" for line in sections)


def _table_lines(table: Table, rules: Iterable[Rule], standing: Standing) -> Iterator[str]:
    going = []
    for hook, name in CHAINS.items():
        chain = standing.get((table, hook))
        jumps = chain.jumps if chain else ()
        if wanted := [_render_rule(rule) for rule in rules if rule.hook is hook]:
            yield f":{name} - [0:0]"  # made, or emptied where it stands
            if jumps != FIRST:
                yield from [_jump("-D", hook)] * len(jumps)
                yield _jump("-I", hook, " 1")
            yield f'-A {name} -m comment --comment "nodeagent layout {LAYOUT_VERSION}"'
            yield from (f"-A {name} {rule}" for rule in wanted)
        elif chain:
            yield from [_jump("-D", hook)] * len(jumps)
            yield f"-F {name}"
            if not chain.held:
                going.append(name)
    # A rule that a tenant put into one of them may lead to the other.
    yield from (f"-X {name}" for name in going)


def _jump(command: str, hook: Hook, position: str = "") -> str:
    return f"{command} {hook.upper()}{position} -j {CHAINS[hook]}"


def _render_rule(rule: Rule) -> str:
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
