"""Taking rules and sets for health probes off the host: only what is proven to be ours (L30)."""

import contextlib
import re
from collections.abc import Collection
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from nodeagent.mesh.pod import IPAddress
from nodeagent.netfilter.errors import RedirectError
from nodeagent.netfilter.iptables_programs import Variant
from nodeagent.netfilter.iptables_save import Chain
from nodeagent.netfilter.layout import LAYOUT_MARK, LAYOUT_VERSION
from nodeagent.netfilter.nft import render_removal
from nodeagent.netfilter.rule import Family
from nodeagent.probes.ipsets import ProbeIpsets
from nodeagent.probes.iptables_rules import CHAIN, read_chains, remove_chains
from nodeagent.probes.nft_rules import CHAIN as NFT_CHAIN
from nodeagent.probes.nft_rules import ISTIO_CHAIN, SETS, TABLE, ProbeRules
from nodeagent.probes.nft_table import ProbeTable, Standing, reference

_MARK = re.compile(rf'-A {CHAIN} -m comment --comment "{LAYOUT_MARK}[0-9]+"')
_SOURCE = re.compile(r"--to-source [0-9a-f.:]+")
_COUNT, _LAYOUT = "number of chains, sets and objects", "layout version"
_TARGET = b"nat\0"


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

    With `istios_too` also what is exactly as Istio's ambient agent makes it: for whoever
    takes its place. At an uninstall it may be the one that takes ours, and has just made
    it. Sets go with the chains that use them, where no chosen backend needs them. What fails
    prevents nothing else.
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


def probed_addresses() -> frozenset[IPAddress]:
    """The addresses in the sets of every backend, in the calling thread's network namespace.

    Without those of a backend that the kernel does not have.
    """
    found: set[IPAddress] = set()
    with contextlib.suppress(RedirectError), ProbeIpsets() as sets:
        for version in SETS:
            found.update(sets.owners(version))
    with contextlib.suppress(RedirectError), contextlib.closing(ProbeTable()) as table:
        found.update(table.owners())
    return frozenset(found)


def _remove_chains(variant: Variant, done: Removal, *, istios_too: bool) -> set[int]:
    """Return the versions of the Internet Protocol whose chains are gone now."""
    gone: set[int] = set()
    for family in Family:
        what = f"{family} chain {CHAIN} in iptables-{variant}"
        try:
            chains = read_chains(variant, [family])
            for chain in chains.values():
                if not (_is_ours(chain, family) or (istios_too and _is_istios(chain, family))):
                    done.left.append(f"{what}: its rules are not this agent's")
                    continue
                remove_chains(variant, chains)
                gone.add(family.value.version)
                done.removed.append(what)
        except RedirectError as error:
            done.failed.append(f"{what}: {error}")
    return gone


def _is_ours(chain: Chain[str], family: Family) -> bool:
    mark, *others = chain.rules or ("",)
    return bool(_MARK.fullmatch(mark)) and all(_is_probe_rule(rule, family) for rule in others)


def _is_istios(chain: Chain[str], family: Family) -> bool:
    return bool(chain.rules) and all(_is_probe_rule(rule, family) for rule in chain.rules)


def _is_probe_rule(rule: str, family: Family) -> bool:
    """Whether it is what this agent writes, and Istio's too; the order of its parts is nobody's."""
    rest = rule
    for part in (
        f"-A {CHAIN}",
        "-p tcp",
        "-m owner --socket-exists",
        f"-m set --match-set {SETS[family.value.version]} dst",
        "-j SNAT",
    ):
        if part not in rest:
            return False
        rest = rest.replace(part, "", 1)
    return bool(_SOURCE.fullmatch(rest.strip()))


def _remove_sets(versions: Collection[int], done: Removal) -> None:
    try:
        with ProbeIpsets() as sets:
            for version, name in SETS.items():
                if sets.header(version) is None:
                    continue
                if version not in versions:
                    done.left.append(f"ipset {name}: no rule of this agent's used it")
                    continue
                try:
                    sets.destroy(version)
                except RedirectError as error:
                    done.left.append(f"ipset {name}: {error}")
                else:
                    done.removed.append(f"ipset {name}")
    except RedirectError as error:
        done.failed.append(f"ipsets: {error}")


def _remove_table(rules: ProbeRules, done: Removal, *, istios_too: bool) -> None:
    try:
        table = ProbeTable()
        try:
            standing = table.standing()
            if not standing:
                return
            if _table_is_ours(standing, rules) or (istios_too and _table_is_istios(standing)):
                table.apply(render_removal([TABLE]))
                done.removed.append(f"table inet {TABLE}")
            else:
                done.left.append(f"table inet {TABLE}: it is not as this agent makes it")
        finally:
            table.close()
    except RedirectError as error:
        done.failed.append(f"table inet {TABLE}: {error}")


def _table_is_ours(standing: Standing, rules: ProbeRules) -> bool:
    """Whether it has our mark, and no rule or chain that somebody else has put in."""
    layout = standing.get(_LAYOUT)
    if not isinstance(layout, bytes) or LAYOUT_MARK.encode() not in layout:
        return False
    if f"{LAYOUT_MARK}{LAYOUT_VERSION}\0".encode() not in layout:
        return True  # an older one of ours; what was in that is not known any more
    ours = reference(rules)
    parts = [part for part in standing if part.startswith(("rule ", "chain ")) or part == _COUNT]
    return all(standing[part] == ours.get(part) for part in parts)


def _table_is_istios(standing: Standing) -> bool:
    """Whether there are its chain, the two sets, and rules that translate for them.

    Where it took a table over from this agent, our mark and our chain, now empty, stand there too.
    """
    chains = {f"chain {ISTIO_CHAIN}"}
    if standing.get(_LAYOUT) is not None:
        chains.add(f"chain {NFT_CHAIN}")
    known = {*chains, *(f"set {name}" for name in SETS.values())} & standing.keys()
    count = standing[_COUNT]
    rules = [rule for part, rule in standing.items() if part.startswith("rule ")]
    names = [name.encode() + b"\0" for name in SETS.values()]
    return (
        isinstance(count, bytes)
        and int.from_bytes(count, "big") == len(known)
        and all(
            isinstance(rule, bytes) and _TARGET in rule and any(name in rule for name in names)
            for rule in rules
        )
    )
