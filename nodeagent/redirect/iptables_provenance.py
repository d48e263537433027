"""Whose a chain is that has the name of one of ours (L30).

istio-init gives sidecar pods a chain ``ISTIO_OUTPUT``, too: a name proves nothing. A chain
is ours, or of Istio's ambient agent, by what stands in it.
"""

from nodeagent.mesh.overrides import MAX_INTERFACES
from nodeagent.netfilter.iptables_programs import Variant, list_chain
from nodeagent.netfilter.iptables_save import Chain, statements
from nodeagent.netfilter.layout import LAYOUT_MARK
from nodeagent.netfilter.rule import Family, Table
from nodeagent.redirect.iptables_rules import CHAINS, Place, Standing
from nodeagent.redirect.iptables_state import Tables

_LONGEST = 2 * MAX_INTERFACES + 20
"""Two rules for each interface that may be rerouted, and those that every pod has."""
_UNKNOWN = frozenset({frozenset({"?"})})
_ADDRESS, _LOOPBACK, _INTERFACE = "ADDRESS", "LOOPBACK", "INTERFACE"
_LOOPBACKS = {"127.0.0.1/32", "127.0.0.0/8", "::1/128", "::1"}

# What Istio's ambient agent writes into ISTIO_PRERT and ISTIO_OUTPUT of a pod, versions
# 1.21 (with TPROXY) to 1.29; at the end what only this agent writes, for rules of ours
# whose comment somebody has taken out.
_AMBIENT = """\
-m mark --mark 0x539/0xfff -j CONNMARK --set-xmark 0x111/0xfff
-m connmark --mark 0x111/0xfff -j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff
-i INTERFACE -p tcp -j REDIRECT --to-ports 15001
-i INTERFACE -p tcp -j RETURN
-s ADDRESS -p tcp -j ACCEPT
-d ADDRESS -p tcp -j ACCEPT
! -d LOOPBACK -p tcp ! --dport 15008 -m mark ! --mark 0x539/0xfff -j REDIRECT --to-ports 15006
! -o lo -p udp --dport 53 -m mark ! --mark 0x539/0xfff -j REDIRECT --to-ports 15053
! -o lo -p udp --dport 53 -j REDIRECT --to-ports 15053
! -d LOOPBACK -p tcp --dport 53 -m mark ! --mark 0x539/0xfff -j REDIRECT --to-ports 15053
-p tcp -m mark --mark 0x111/0xfff -j ACCEPT
! -d LOOPBACK -o lo -j ACCEPT
! -d LOOPBACK -p tcp -m mark ! --mark 0x539/0xfff -j REDIRECT --to-ports 15001
-p udp --dport 53 -m mark --mark 0x539/0xfff -j CT --zone 1
-p udp --sport 53 -m mark ! --mark 0x539/0xfff -j CT --zone 1
! -d LOOPBACK -i lo -p tcp -j ACCEPT
-p tcp --dport 15008 -m mark ! --mark 0x539/0xfff -j TPROXY --on-port 15008 \
--tproxy-mark 0x111/0xfff
-p tcp -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
! -d LOOPBACK -p tcp -m mark ! --mark 0x539/0xfff -j TPROXY --on-port 15006 \
--tproxy-mark 0x111/0xfff
-o INTERFACE -m mark --mark 0x539/0xfff -m conntrack --ctdir ORIGINAL \
-j CONNMARK --set-xmark 0x111/0xfff
-i INTERFACE -m connmark --mark 0x111/0xfff -j CONNMARK --restore-mark \
--nfmask 0xffffffff --ctmask 0xffffffff
-m connmark --mark 0x111/0xfff -m conntrack --ctdir ORIGINAL -j RETURN
-s ADDRESS -p tcp -j RETURN
-d ADDRESS -p tcp -j RETURN
-p tcp -m mark --mark 0x111/0xfff -j RETURN
! -d LOOPBACK -o lo -j RETURN
"""


def proven(variant: Variant, have: Tables) -> Tables:
    """Those chains of `have` that are ours or of Istio's ambient agent.

    With our mark, or in a family in which the mark 0x111 is put on connections and nothing
    stands in the chain but rules of the ambient agent. Only what has no mark is listed, by
    the chain. Raises `RulesError`.
    """
    found = {family: _proven(variant, family, standing) for family, standing in have.items()}
    return {family: standing for family, standing in found.items() if standing}


def conflicts(variant: Variant, have: Tables) -> tuple[str, ...]:
    """Name the chains of somebody else in the places of ours.

    None in a pod in which any chain is ours: what differs there has been changed since.
    An empty chain has nothing to lose. Raises `RulesError`.
    """
    chains = [chain for standing in have.values() for chain in standing.values()]
    if any(map(_has_mark, chains)) or proven(variant, have):
        return ()
    return tuple(
        f"{family} {describe(place)}"
        for family, standing in have.items()
        for place, chain in standing.items()
        if chain.rules
    )


def describe(place: Place) -> str:
    """Name a chain."""
    table, hook = place
    return f"table {table}: chain {CHAINS[hook]}"


def _proven(variant: Variant, family: Family, standing: Standing) -> Standing:
    marked = {place for place, chain in standing.items() if _has_mark(chain)}
    listed = {
        place: _listed(variant, family, place, chain)
        for place, chain in standing.items()
        if place not in marked
    }
    ambient = marked or any(
        not rules.isdisjoint(_CONNMARK_RULES)
        for (table, _), rules in listed.items()
        if table is Table.MANGLE
    )
    return {
        place: chain
        for place, chain in standing.items()
        if place in marked or (ambient and listed[place] <= _AMBIENT_RULES)
    }


def _has_mark(chain: Chain[bytes]) -> bool:
    return any(LAYOUT_MARK.encode() in rule for rule in chain.rules[:1])


_Rule = frozenset[str]
"""Conditions and target, whatever the order and the program's version."""


def _listed(
    variant: Variant, family: Family, place: Place, chain: Chain[bytes]
) -> frozenset[_Rule]:
    """What stands in a chain; of one that is longer than Istio's agent makes it, nothing known."""
    if not chain.rules:
        return frozenset()
    if len(chain.rules) > _LONGEST:
        return _UNKNOWN
    table, hook = place
    listing = list_chain(variant, family, table, CHAINS[hook])
    rules = (line for line in statements(listing) if line.startswith("-A "))
    return frozenset(_parse(rule.split(" ")[2:]) for rule in rules)


def _parse(words: list[str]) -> _Rule:
    parts: list[str] = []
    negated = ""
    skipping = False
    for word in words:
        if word == "!":
            negated = "! "
        elif word.startswith("-"):
            # The one is what KEEP_OPEN_CONNECTIONS adds, the other where TPROXY goes anyway.
            skipping = word in {"--tcp-flags", "--on-ip"}
            if not skipping:
                parts.append(negated + word)
            negated = ""
        elif parts and not skipping:
            parts[-1] += f" {_generalized(parts[-1], word)}"
    return frozenset(parts) - _IMPLIED


def _generalized(option: str, value: str) -> str:
    match option:
        case "-i" | "-o" if value != "lo":
            return _INTERFACE
        case "! -d" if value in _LOOPBACKS:
            return _LOOPBACK
        case "-s" | "-d" if value.endswith(("/32", "/128")) or "/" not in value:
            return _ADDRESS
    return value


_IMPLIED = {"-m tcp", "-m udp"}
"""Versions of the programs differ in whether they write these beside ``-p``."""
_AMBIENT_RULES = frozenset(_parse(line.split()) for line in _AMBIENT.splitlines())
_CONNMARK_RULES = frozenset(_parse(line.split()) for line in _AMBIENT.splitlines()[:2])
