"""Our chains in a pod, in the language of ``iptables-restore`` and ``iptables-save``."""

from collections.abc import Collection, Iterable, Iterator, Mapping

from nodeagent.netfilter.iptables import FIRST, render_rule
from nodeagent.netfilter.iptables_save import Chain
from nodeagent.netfilter.layout import LAYOUT_COMMENT
from nodeagent.netfilter.rule import Family, Hook, Rule, Table
from nodeagent.redirect.rules import RedirectSpec, pod_rules

CHAINS = {
    Hook.PREROUTING: "ISTIO_PRERT",
    Hook.OUTPUT: "ISTIO_OUTPUT",
    Hook.POSTROUTING: "ISTIO_REROUTE",
}
"""What is ours in each of the tables, in both families.

The first two are Istio's, too. The third is not called ``ISTIO_POSTRT``: that is the
host's, and a pod may be the host of a nested cluster.
"""

# Each table is a transaction of its own: what carries replies stands before the
# redirection that makes it needed, and goes after it.
_ORDER = (Table.MANGLE, Table.RAW, Table.NAT)

Place = tuple[Table, Hook]
Standing = Mapping[Place, Chain[bytes]]
"""Our chains in one family."""


def render(spec: RedirectSpec, family: Family, *, replacing: Standing | None = None) -> str:
    """Return the input for ``iptables-restore --noflush`` that makes `spec` true in `family`.

    One transaction per table. `replacing` is what was read there; without it, nothing
    of ours stands. A jump that stands once and first is not touched, so that the
    packets of a pod that is right never miss it.
    """
    return _render([rule for rule in pod_rules(spec) if family in rule.families], replacing or {})


def render_removal(standing: Standing) -> str:
    """Return the input for ``iptables-restore --noflush`` that removes `standing`."""
    return _render([], standing)


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
        if wanted := [render_rule(rule) for rule in rules if rule.hook is hook]:
            yield f":{name} - [0:0]"  # made, or emptied where it stands
            if jumps != FIRST:
                yield from [_jump("-D", hook)] * len(jumps)
                yield _jump("-I", hook, " 1")
            yield f'-A {name} -m comment --comment "{LAYOUT_COMMENT}"'
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
