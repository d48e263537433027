"""Whose a chain is that has the name of one of ours (L30).

istio-init gives sidecar pods a chain ``ISTIO_OUTPUT``, too: a name proves nothing. A chain
is ours, or of Istio's ambient agent, by what stands in it.
"""

from collections.abc import Iterator

from nodeagent.redirect.iptables import CHAINS, Place, Standing
from nodeagent.redirect.iptables_save import Chain
from nodeagent.redirect.iptables_standing import Tables
from nodeagent.redirect.rules import Table

_MARK = '--comment "nodeagent layout '
_ADDRESS, _LOOPBACK, _INTERFACE = "ADDRESS", "LOOPBACK", "INTERFACE"
_LOOPBACKS = {"127.0.0.1/32", "127.0.0.0/8", "::1/128", "::1"}

# What Istio's ambient agent writes into ISTIO_PRERT and ISTIO_OUTPUT of a pod, versions
# 1.21 (with TPROXY) to 1.29. Ours are the same but for the comment, so this proves rules
# of ours as well whose comment somebody has taken out.
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
"""


def proven(have: Tables) -> Tables:
    """Those chains of `have` that are ours or of Istio's ambient agent.

    With our mark, or in a family in which the mark 0x111 is on connections and nothing
    stands in the chain but rules of the ambient agent.
    """
    found = {
        family: {
            place: chain
            for place, chain in standing.items()
            if _has_mark(chain) or (_is_ambient(standing) and _rules_of(chain) <= _AMBIENT_RULES)
        }
        for family, standing in have.items()
    }
    return {family: standing for family, standing in found.items() if standing}


def conflicts(have: Tables) -> Iterator[str]:
    """Name the chains of somebody else in the places of ours.

    None in a pod in which any chain is ours: what differs there has been changed since.
    An empty chain has nothing to lose.
    """
    if proven(have):
        return
    for family, standing in have.items():
        for place, chain in standing.items():
            if chain.rules:
                yield f"{family} {describe(place)}"


def describe(place: Place) -> str:
    """Name a chain."""
    table, hook = place
    return f"table {table}: chain {CHAINS[hook]}"


def _has_mark(chain: Chain) -> bool:
    return any(_MARK in rule for rule in chain.rules[:1])


def _is_ambient(standing: Standing) -> bool:
    return any(
        _has_mark(chain)
        or (table is Table.MANGLE and not _rules_of(chain).isdisjoint(_CONNMARK_RULES))
        for (table, _), chain in standing.items()
    )


_Rule = frozenset[str]
"""Conditions and target, whatever the order and the program's version."""


def _rules_of(chain: Chain) -> frozenset[_Rule]:
    return frozenset(_parse(rule.split(" ")[2:]) for rule in chain.rules)


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
        case "-i" if value != "lo":
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
