"""Whether a chain with one of our names is ours, Istio's or somebody else's (L30).

istio-init gives sidecar pods a chain ``ISTIO_OUTPUT`` as well, so a name proves nothing. A
chain is ours if its first rule has our layout comment. It is of Istio's ambient agent if the
mark 0x111 is put on connections and there is no rule in the chain that this agent does not
write. Only such chains are ever replaced or removed.
"""

from nodeagent.mesh.overrides import MAX_INTERFACES
from nodeagent.netfilter.iptables_programs import Variant, list_chain
from nodeagent.netfilter.iptables_save import Chain, statements
from nodeagent.netfilter.iptables_tables import Chains, Place, Tables
from nodeagent.netfilter.layout import LAYOUT_MARK
from nodeagent.netfilter.rule import Family, Table
from nodeagent.redirect.iptables_rules import CHAINS

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
    """Return those chains of `have` that are ours or of Istio's ambient agent.

    Only for chains without our comment a program is run, one for each. Raises `RulesError`.
    """
    found = {family: _proven(variant, family, chains) for family, chains in have.items()}
    return {family: chains for family, chains in found.items() if chains}


def conflicts(variant: Variant, have: Tables) -> tuple[str, ...]:
    """Name the chains of somebody else that have our names, and must not be overwritten.

    There are none in a pod in which any chain is ours: what differs there has been changed
    since we wrote it. An empty chain does not count. Raises `RulesError`.
    """
    found = [chain for chains in have.values() for chain in chains.values()]
    if any(map(_has_mark, found)) or proven(variant, have):
        return ()
    return tuple(
        f"{family} {describe(place)}"
        for family, chains in have.items()
        for place, chain in chains.items()
        if chain.rules
    )


def describe(place: Place) -> str:
    """Name a chain for a message."""
    table, hook = place
    return f"table {table}: chain {CHAINS[hook]}"


def _proven(variant: Variant, family: Family, chains: Chains) -> Chains:
    marked = {place for place, chain in chains.items() if _has_mark(chain)}
    listed = {
        place: _listed(variant, family, place, chain)
        for place, chain in chains.items()
        if place not in marked
    }
    ambient = marked or any(
        not rules.isdisjoint(_CONNMARK_RULES)
        for (table, _), rules in listed.items()
        if table is Table.MANGLE
    )
    return {
        place: chain
        for place, chain in chains.items()
        if place in marked or (ambient and listed[place] <= _AMBIENT_RULES)
    }


def _has_mark(chain: Chain[bytes]) -> bool:
    return any(LAYOUT_MARK.encode() in rule for rule in chain.rules[:1])


_Rule = frozenset[str]
"""A rule's conditions and target, in a form that is the same for each version of iptables."""


def _listed(
    variant: Variant, family: Family, place: Place, chain: Chain[bytes]
) -> frozenset[_Rule]:
    """Return the rules of a chain; for one longer than Istio's agent makes it, `_UNKNOWN`."""
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
