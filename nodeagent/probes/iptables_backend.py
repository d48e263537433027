"""The host's probe set for nodes on iptables: a chain in table nat, and ipsets."""

import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from typing import TypeVar

import structlog

from nodeagent.mesh.pod import IPAddress
from nodeagent.netfilter.errors import RedirectError
from nodeagent.netfilter.iptables_programs import Variant
from nodeagent.netfilter.iptables_save import Chain
from nodeagent.netfilter.rule import Family
from nodeagent.netfilter.scratch import in_scratch_namespace
from nodeagent.netns.netns import Netns
from nodeagent.netns.threads import NetnsThreads
from nodeagent.probes.host_probes import Check, HostProbes
from nodeagent.probes.ipsets import ProbeIpsets
from nodeagent.probes.iptables_rules import (
    CHAIN,
    ProbeChains,
    fingerprint,
    read_chains,
    remove_chains,
    write_chain,
)
from nodeagent.probes.nft_rules import SETS, ProbeRules
from nodeagent.probes.nft_table import ProbeTable

log = structlog.get_logger()

T = TypeVar("T")
Layout = Mapping[str, object]
"""What stands, by what it is called, without counts and addresses."""

_FAMILIES = {family.value.version: family for family in Family}

# Looks at the chains are this many times further apart than they take, 5 % of a core:
# a listing has all of kube-proxy's rules in it, and many pods ask within a second.
_PAUSE = 20
_V6_AGAIN = 60.0
_LONGEST_PAUSE = 5.0
"""Seconds: on a node that is out of breath, time that passes says little about work."""


class IptablesHostProbes(HostProbes):
    """Does with iptables what `HostProbes` does with nftables.

    An address goes into its set with one message, and an owner is replaced in place.
    Sets are looked at every time. Chains are listed every 0.3 s at most, or less often
    where a listing is long, and with `Variant.NFT` only after one of the rules that count
    has changed.
    """

    def __init__(
        self,
        threads: NetnsThreads,
        host: Netns,
        *,
        variant: Variant,
        probe_v4: IPv4Address,
        probe_v6: IPv6Address,
        ipv6: bool,
    ) -> None:
        """See `HostProbes`; `variant` is the one that the host's own rules are written in."""
        super().__init__(threads, host, probe_v4=probe_v4, probe_v6=probe_v6, ipv6=ipv6)
        self._variant = variant
        self._next_look = 0.0
        self._seen: Hashable = None
        """The fingerprint of the chains when they were listed last, if they were right."""
        self._wished = self._rules
        self._next_v6 = 0.0
        """When to try again whether there can be rules for IPv6, where there could not."""

    def _work(self, job: Callable[[ProbeTable], T]) -> T:
        # Unlike one that has written nftables, this socket costs nothing to close.
        with ProbeIpsets() as sets:
            return job(_Sets(sets, self._rules))

    def _start(self, table: ProbeTable) -> None:
        self._next_look, self._seen = 0.0, None
        super()._start(table)

    def _check(self, table: ProbeTable) -> Check:
        begun = time.monotonic()
        if self._sets_are_right(_ipsets(table)) and fingerprint(self._variant) == self._seen:
            return Check(self._restore(table), time.monotonic() - begun)
        if self._variant is Variant.NFT:
            # Not one of kube-proxy's many rules has changed, but one of those that count.
            self._next_look = 0.0
        return super()._check(table)

    def _contents(self, table: ProbeTable) -> Hashable:
        sets = _ipsets(table)
        headers = [sets.header(version) for version in self._rules.versions]
        counts = tuple(header and header.count for header in headers)
        # Others' sets have no count before Linux 4.10: then the addresses are read each time.
        return counts if all(counts) else object()

    def _reference(self) -> Layout:
        """What should stand; without IPv6 where the kernel or the programs have none of it."""
        lame = self._rules != self._wished
        if lame and time.monotonic() < self._next_v6:
            return reference(self._variant, self._rules)
        try:
            want, rules = reference(self._variant, self._wished), self._wished
        except RedirectError as error:
            if not self._wished.ipv6:
                raise
            rules = replace(self._wished, ipv6=False)
            # Raises where IPv4 cannot be had either: then it is no fault of one family.
            want = reference(self._variant, rules)
            self._next_v6 = time.monotonic() + _V6_AGAIN
            if not lame:
                log.warning(
                    "health probes of IPv6 addresses go through ztunnel; on a node without IPv6,"
                    " set AMBIENT_IPV6=false",
                    reason=str(error),
                )
        self._rules = rules
        return want

    def _families(self) -> list[Family]:
        # Without a wish for IPv6 its chain has to go; where it cannot be had, there is none.
        return [Family.V4] if self._rules != self._wished else list(Family)

    def _sets_are_right(self, sets: ProbeIpsets) -> bool:
        want = self._reference()
        have = _set_layout(sets, self._rules)
        return all(want[part] == have[part] for part in have)

    def _mend(self, table: ProbeTable) -> tuple[str, ...]:
        sets = _ipsets(table)
        want = self._reference()
        have = _set_layout(sets, self._rules)
        seen = fingerprint(self._variant)  # before the look: what changes during it is seen
        begun = time.monotonic()
        known = self._variant is Variant.NFT and seen == self._seen
        if (known or begun < self._next_look) and self._sets_are_right(sets):
            return ()
        chains = read_chains(self._variant, self._families())
        differed = tuple(_differences(have | _chain_layout(chains), want))
        self._seen = None if differed else seen
        if differed:
            self._write(sets, chains, want)
            log.info("host probe chains written", differed=list(differed))
        ended = time.monotonic()
        self._next_look = ended + min(_PAUSE * (ended - begun), _LONGEST_PAUSE)
        return differed

    def _write(self, sets: ProbeIpsets, chains: ProbeChains, want: Layout) -> None:
        standing = dict(chains)
        for version, family in _FAMILIES.items():
            chain = standing.get(family)
            wanted = version in self._rules.versions
            replaced = wanted and sets.header(version) != want[_set_part(version)]
            if chain and (replaced or not wanted):
                # The kernel keeps a set for as long as a rule uses it.
                remove_chains(self._variant, {family: chain})
                chain = None
            if replaced:
                self._replace_set(sets, version)
            if wanted and _comparable(chain) != want[_chain_part(family)]:
                write_chain(self._variant, family, self._rules, chain)

    def _replace_set(self, sets: ProbeIpsets, version: int) -> None:
        owners = sets.owners(version)
        for uid, addresses in self._claims.items():
            owners.update((address, uid) for address in addresses if address.version == version)
        if sets.header(version):
            sets.destroy(version)
        sets.create(version)
        for address, owner in owners.items():
            sets.add(address, owner)

    @staticmethod
    def _change(
        table: ProbeTable, deleted: Iterable[IPAddress], added: dict[IPAddress, str]
    ) -> None:
        sets = _ipsets(table)
        for address in deleted:
            if address not in added:
                sets.delete(address)
        for address, owner in added.items():
            sets.add(address, owner)


@lru_cache(maxsize=8)
def reference(variant: Variant, rules: ProbeRules) -> Layout:
    """What stands where `rules` are true. Raises `RedirectError`.

    Found out by doing it, because each version of the programs has its own notation.
    """

    def done() -> Layout:
        with ProbeIpsets() as sets:
            for version in rules.versions:
                sets.create(version)
                write_chain(variant, _FAMILIES[version], rules, None)
            return _set_layout(sets, rules) | _chain_layout(read_chains(variant))

    return in_scratch_namespace(done)


class _Sets(ProbeTable):
    """The addresses in the sets, for what `HostProbes` asks about them."""

    def __init__(self, ipsets: ProbeIpsets, rules: ProbeRules) -> None:
        self.ipsets = ipsets
        self._rules = rules

    def owner(self, address: IPAddress) -> str | None:
        # A set can be asked whether it has an address, but not for the comment.
        return self.ipsets.owners(address.version).get(address)

    def owners(self) -> dict[IPAddress, str]:
        return {
            address: owner
            for version in self._rules.versions
            for address, owner in self.ipsets.owners(version).items()
        }


def _ipsets(table: ProbeTable) -> ProbeIpsets:
    assert isinstance(table, _Sets)  # noqa: S101 - `_work` gives no other
    return table.ipsets


def _differences(have: Layout, want: Layout) -> Iterator[str]:
    for part in (*want, *(part for part in have if part not in want)):
        if have.get(part) is None:
            yield f"{part} is missing"
        elif part not in want:
            yield f"{part} is not wanted"
        elif have[part] != want[part]:
            yield f"{part} differs"


def _set_layout(sets: ProbeIpsets, rules: ProbeRules) -> dict[str, object]:
    # A set that is not wanted hurts nobody, and the other variant may use it still.
    return {_set_part(version): sets.header(version) for version in rules.versions}


def _chain_layout(chains: ProbeChains) -> dict[str, object]:
    return {_chain_part(family): _comparable(chain) for family, chain in chains.items()}


def _set_part(version: int) -> str:
    return f"ipset {SETS[version]}"


def _chain_part(family: Family) -> str:
    return f"{family} chain {CHAIN}"


def _comparable(chain: Chain[str] | None) -> object:
    # Who else leads here is not ours to change.
    return chain and (chain.jumps, chain.rules)
