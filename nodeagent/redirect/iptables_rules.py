"""A pod's rules in the language of ``iptables-restore``.

In each table our rules are in chains of our own, one for each hook, and the first rule of
the hook's built-in chain jumps to ours.
"""

from collections.abc import Collection, Iterable, Iterator

from nodeagent.netfilter.iptables import FIRST, render_rule
from nodeagent.netfilter.iptables_tables import Chains
from nodeagent.netfilter.layout import LAYOUT_COMMENT
from nodeagent.netfilter.rule import Family, Hook, Rule, Table
from nodeagent.redirect.rules import RedirectSpec, pod_rules

CHAINS = {
    Hook.PREROUTING: "ISTIO_PRERT",
    Hook.OUTPUT: "ISTIO_OUTPUT",
    Hook.POSTROUTING: "ISTIO_REROUTE",
}
"""Our chain for each hook; the name is the same in each table and family.

The first two are Istio's, too. The third is not called ``ISTIO_POSTRT``: that is the
host's, and a pod may be the host of a nested cluster.
"""

# Each table is a transaction of its own: the marks that carry replies are made before the
# redirection that makes them needed, and go after it.
_ORDER = (Table.MANGLE, Table.RAW, Table.NAT)


def render(spec: RedirectSpec, family: Family, *, replacing: Chains | None = None) -> str:
    """Return the input for ``iptables-restore --noflush`` that makes `spec` true in `family`.

    One transaction per table. `replacing` are the chains that are there now, as they were
    read; without it there are none. A jump that is there once and first is not touched, so
    that no packet misses it.
    """
    return _render([rule for rule in pod_rules(spec) if family in rule.families], replacing or {})


def render_removal(installed: Chains) -> str:
    """Return the input for ``iptables-restore --noflush`` that removes `installed`."""
    return _render([], installed)


def _render(rules: Collection[Rule], installed: Chains) -> str:
    sections = []
    for table in _ORDER if rules else reversed(_ORDER):
        lines = [*_table_lines(table, [rule for rule in rules if rule.table is table], installed)]
        if lines:
            sections += [f"*{table}", *lines, "COMMIT"]
    return "".join(f"{line}\n" for line in sections)


def _table_lines(table: Table, rules: Iterable[Rule], installed: Chains) -> Iterator[str]:
    unwanted = []
    for hook, name in CHAINS.items():
        chain = installed.get((table, hook))
        jumps = chain.jumps if chain else ()
        if wanted := [render_rule(rule) for rule in rules if rule.hook is hook]:
            yield f":{name} - [0:0]"  # makes the chain, or empties it
            if jumps != FIRST:
                yield from [_jump("-D", hook)] * len(jumps)
                yield _jump("-I", hook, " 1")
            yield f'-A {name} -m comment --comment "{LAYOUT_COMMENT}"'
            yield from (f"-A {name} {rule}" for rule in wanted)
        elif chain:
            yield from [_jump("-D", hook)] * len(jumps)
            yield f"-F {name}"
            if not chain.held:
                unwanted.append(name)
    # A rule that a tenant put into one of them may lead to the other.
    yield from (f"-X {name}" for name in unwanted)


def _jump(command: str, hook: Hook, position: str = "") -> str:
    return f"{command} {hook.upper()}{position} -j {CHAINS[hook]}"
