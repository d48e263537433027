"""The rules of one pod in nft's own language: our tables and chains, with the rules in them."""

from collections.abc import Iterable
from functools import lru_cache

from nodeagent.netfilter.layout import LAYOUT_COMMENT
from nodeagent.netfilter.nft import render_removal, render_rule
from nodeagent.netfilter.rule import Hook, Rule, Table
from nodeagent.redirect.rules import RedirectSpec, pod_rules

_PREFIX = "istio-ambient-"
TABLE_NAMES = tuple(f"{_PREFIX}{table}" for table in Table)
"""The tables of family inet that are ours, with everything in them."""

_BEFORE_TRANSLATIONS = "before-translations"
"""The base chain in the place of `prerouting` in the pod of a virtual machine.

The machine's translation comes up at priority -100 when its pod is in the mesh already, and of
two chains with one priority the kernel asks the later one first. So this chain is at -101. It
has a name of its own because Istio's agent, in this agent's place again, adds `prerouting` at
-100, which the kernel refuses where a chain of the name has another priority.
"""
CHAIN_NAMES = (
    *(name for hook in Hook for name in (f"istio-{hook}", str(hook))),
    _BEFORE_TRANSLATIONS,
)
"""The chains that our tables may have, in the order in which they are made.

Istio's agent uses the same names, but the last.
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


def render(spec: RedirectSpec, *, replacing: Iterable[str] = TABLE_NAMES) -> str:
    """Return the text for ``nft -f`` that makes `spec` true in one transaction.

    The tables named in `replacing` are removed in the same transaction, with all that is in
    them. By default these are all of ours, whether they are there or not. That costs 0.3 ms,
    so a caller who knows which are there names those.
    """
    return render_removal(replacing) + _render_tables(spec)


@lru_cache(maxsize=64)
def _render_tables(spec: RedirectSpec) -> str:
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
    chains: dict[str, list[str]] = {}
    for hook in Hook:
        if chain := [render_rule(rule) for rule in rules if rule.hook is hook]:
            name, base = str(hook), _BASE_CHAINS[table, hook]
            if before_translations and (table, hook) == (Table.NAT, Hook.PREROUTING):
                name, base = _BEFORE_TRANSLATIONS, "type nat hook prerouting priority -101"
            chains[f"istio-{hook}"] = chain
            chains[name] = [f"{base}; policy accept;", f"counter jump istio-{hook}"]
    lines = [f"table inet {_PREFIX}{table} {{", f'\tcomment "{LAYOUT_COMMENT}"']
    for name in CHAIN_NAMES:
        if name in chains:
            lines += [f"\tchain {name} {{", *(f"\t\t{line}" for line in chains[name]), "\t}"]
    return "\n".join([*lines, "}", ""])
