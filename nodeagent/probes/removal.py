"""Taking rules and sets for health probes off the host: only what is proven to be ours (L30).

A name is no evidence, because Istio's agent and anybody else may use the same ones. Ours
is what has our layout mark and beside it nothing that this agent does not write. Where the
agent takes over a node from Istio's ambient agent, what is exactly as that one makes it
goes, too. Everything else is left alone and named in the result.
"""

import contextlib
import re
import socket
from collections.abc import Collection
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from nodeagent.linux.netlink import Netlink
from nodeagent.mesh.pod import IPAddress
from nodeagent.netfilter.errors import RulesError, wrap_oserror
from nodeagent.netfilter.ipset import Ipsets
from nodeagent.netfilter.iptables_programs import Variant
from nodeagent.netfilter.iptables_save import Chain
from nodeagent.netfilter.layout import LAYOUT_COMMENT, LAYOUT_MARK
from nodeagent.netfilter.nfnetlink import name_attribute
from nodeagent.netfilter.nft import render_removal
from nodeagent.netfilter.nft_state import TableState
from nodeagent.netfilter.rule import Family
from nodeagent.probes import iptables_rules
from nodeagent.probes.branch_interfaces import remove_rules
from nodeagent.probes.iptables_rules import read_chains, remove_chains
from nodeagent.probes.nft_rules import CHAIN, ISTIO_CHAIN, TABLE
from nodeagent.probes.nft_table import ProbeTable, reference
from nodeagent.probes.rules import SETS, ProbeRules

_MARK = re.compile(rf'-A {iptables_rules.CHAIN} -m comment --comment "{LAYOUT_MARK}[0-9]+"')
_SOURCE = re.compile(r"--to-source [0-9a-f.:]+")
_NAT = name_attribute(1, "nat")  # NFTA_EXPR_NAME
"""The expression that translates addresses, as it is in the kernel's message of a rule."""


@dataclass(slots=True)
class Removal:
    """What was taken off the host, and what was not; each in words."""

    removed: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    """What has a name of ours and is not proven to be ours, or is used by somebody else."""
    failed: list[str] = field(default_factory=list)
    """What could not be looked at or removed, and may be the next time."""


def remove(
    rules: ProbeRules, backends: AbstractSet[Variant | None], *, istios_too: bool
) -> Removal:
    """Remove what `backends` have in the calling thread's network namespace; None: nftables.

    `rules` are those that this agent has, or would have, with nftables. With `istios_too`
    also what is exactly as Istio's ambient agent makes it: for whoever takes that agent's
    place. At an uninstall, Istio's agent may be the one that takes our place, and may have
    come already. Sets are removed together with the chains that use them, and only if both
    variants of iptables are in `backends`. What fails prevents nothing else.
    """
    done = Removal()
    unused: set[int] = set()
    for variant in Variant:
        if variant in backends:
            unused |= _remove_chains(variant, done, istios_too=istios_too)
    if backends >= set(Variant):
        _remove_sets(set(SETS) if istios_too else unused, done)
    if None in backends:
        _remove_table(rules, done, istios_too=istios_too)
    return done


def remove_ours(rules: ProbeRules) -> Removal:
    """Remove what this agent has made: in every backend, see `remove`, and its policy rules."""
    done = remove(rules, {None, *Variant}, istios_too=False)
    try:
        with wrap_oserror("look at them"), Netlink(socket.NETLINK_ROUTE) as netlink:
            done.removed += remove_rules(netlink)
    except RulesError as error:
        done.failed.append(f"policy rules of branch interfaces: {error}")
    return done


def probed_addresses() -> frozenset[IPAddress]:
    """The addresses in the sets of every backend, in the calling thread's network namespace.

    Without those of a backend that the kernel does not have.
    """
    found: set[IPAddress] = set()
    with contextlib.suppress(RulesError), contextlib.closing(Ipsets()) as sets:
        for name in SETS.values():
            found.update(sets.comments(name))
    with contextlib.suppress(RulesError), contextlib.closing(ProbeTable()) as table:
        found.update(table.owners())
    return frozenset(found)


def _remove_chains(variant: Variant, done: Removal, *, istios_too: bool) -> set[int]:
    """Return the versions of the Internet Protocol whose chains are gone now."""
    gone: set[int] = set()
    for family in Family:
        what = f"{family} chain {iptables_rules.CHAIN} in iptables-{variant}"
        try:
            chains = read_chains(variant, [family])
            for chain in chains.values():
                if not (_is_ours(chain, family) or (istios_too and _is_istios(chain, family))):
                    done.left.append(f"{what}: its rules are not this agent's")
                    continue
                remove_chains(variant, chains)
                gone.add(family.version)
                done.removed.append(what)
        except RulesError as error:
            done.failed.append(f"{what}: {error}")
    return gone


def _is_ours(chain: Chain[str], family: Family) -> bool:
    mark, *others = chain.rules or ("",)
    return bool(_MARK.fullmatch(mark)) and all(_is_probe_rule(rule, family) for rule in others)


def _is_istios(chain: Chain[str], family: Family) -> bool:
    return bool(chain.rules) and all(_is_probe_rule(rule, family) for rule in chain.rules)


def _is_probe_rule(rule: str, family: Family) -> bool:
    """Whether `rule` is what this agent and Istio's write, with its parts in any order."""
    rest = rule
    for part in (
        f"-A {iptables_rules.CHAIN}",
        "-p tcp",
        "-m owner --socket-exists",
        f"-m set --match-set {SETS[family.version]} dst",
        "-j SNAT",
    ):
        if part not in rest:
            return False
        rest = rest.replace(part, "", 1)
    return bool(_SOURCE.fullmatch(rest.strip()))


def _remove_sets(versions: Collection[int], done: Removal) -> None:
    try:
        with contextlib.closing(Ipsets()) as sets:
            for version, name in SETS.items():
                if sets.header(name) is None:
                    continue
                if version not in versions:
                    done.left.append(f"ipset {name}: no rule of this agent's used it")
                    continue
                try:
                    sets.destroy(name)
                except RulesError as error:
                    done.left.append(f"ipset {name}: {error}")
                else:
                    done.removed.append(f"ipset {name}")
    except RulesError as error:
        done.failed.append(f"ipsets: {error}")


def _remove_table(rules: ProbeRules, done: Removal, *, istios_too: bool) -> None:
    try:
        with contextlib.closing(ProbeTable()) as table:
            installed = table.state()
            if installed is None:
                return
            if _table_is_ours(installed, rules) or (istios_too and _table_is_istios(installed)):
                table.apply(render_removal([TABLE]))
                done.removed.append(f"table inet {TABLE}")
            else:
                done.left.append(f"table inet {TABLE}: it is not as this agent makes it")
    except RulesError as error:
        done.failed.append(f"table inet {TABLE}: {error}")


def _table_is_ours(installed: TableState, rules: ProbeRules) -> bool:
    """Whether the table has our mark, and no rule or chain that somebody else has put in."""
    if LAYOUT_MARK.encode() not in installed.comment:
        return False
    if f"{LAYOUT_COMMENT}\0".encode() not in installed.comment:
        return True  # of an earlier version of ours: what that one wrote is not known any more
    ours = reference(rules)
    return installed.chains == ours.chains and installed.members == ours.members


def _table_is_istios(installed: TableState) -> bool:
    """Whether there are Istio's chain, the two sets, and rules that translate for them.

    Where Istio's agent took the table over from this agent, our mark and our chain, now
    empty, are there as well.
    """
    chains = {ISTIO_CHAIN, CHAIN} if installed.comment else {ISTIO_CHAIN}
    names = [f"{name}\0".encode() for name in SETS.values()]
    return (
        installed.chains.keys() <= chains
        and installed.members == len(installed.chains) + len(installed.sets)
        and all(
            _NAT in rule and any(name in rule for name in names)
            for chain in installed.chains.values()
            for rule in chain.rules
        )
    )
