"""The host's rules and sets for health probes on iptables: a chain in table nat, and ipsets.

An address goes into its set with one message, and its owner is replaced in place. Sets
are looked at every time. Chains have to be listed by a program together with all of
kube-proxy's rules, so they are listed as seldom as is safe: every 0.3 s at most, less
often where a listing takes long, and with `Variant.NFT` only after one of the rules that
count has changed.

iptables has no transaction over both families and the sets: where one of them fails, those
before it have been written. A later look makes up for the rest.
"""

import contextlib
import time
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache

import structlog

from nodeagent.mesh.pod import IPAddress
from nodeagent.netfilter.errors import RulesError
from nodeagent.netfilter.ipset import Ipsets
from nodeagent.netfilter.iptables_programs import Variant
from nodeagent.netfilter.iptables_save import Chain
from nodeagent.netfilter.rule import Family
from nodeagent.netfilter.scratch import in_scratch_netns
from nodeagent.probes.backend import Occasion, Repair
from nodeagent.probes.iptables_rules import (
    CHAIN,
    ProbeChains,
    fingerprint,
    read_chains,
    remove_chains,
    write_chain,
)
from nodeagent.probes.rules import SETS, Claims, Owners, ProbeRules, claimed_addresses, owner_in

log = structlog.get_logger()

Layout = Mapping[str, object]
"""What is installed, by what it is called in a log; without counters and addresses."""

_FAMILIES = {family.version: family for family in Family}

LISTING_PAUSE = 20
"""Listings are this many times further apart than they take, 5 % of a core: many pods may be
looked at within a second."""
_LONGEST_PAUSE = 5.0
"""Seconds: on an overloaded node, the time that a listing takes says little about work."""
_V6_RETRY_AFTER = 60.0
"""Seconds after which rules for IPv6 are tried again where there could be none."""


class IptablesProbeBackend:
    """A `ProbeBackend` for one variant of iptables."""

    def __init__(self, variant: Variant, rules: ProbeRules) -> None:
        """`variant` is the one that the host's own rules are written in."""
        self._variant = variant
        self._configured_rules = rules
        self._rules = rules
        self._ipsets: Ipsets | None = None
        self._next_listing = 0.0
        """When the chains are to be listed again, on the monotonic clock."""
        self._right_fingerprint: Hashable = None
        """The chains' fingerprint when they were listed last, if they were right then."""
        self._next_v6_try = 0.0
        """Where IPv6 could not be had: when to try again, on the monotonic clock."""

    @property
    def rules(self) -> ProbeRules:
        """See `ProbeBackend`."""
        return self._rules

    def repair(self, claims: Claims, occasion: Occasion) -> Repair:
        """See `ProbeBackend`. Each set and each family's chain is written by itself."""
        sets = self._open()
        desired = self._desired()
        installed = _set_layout(sets, self._rules)
        # Taken before the listing, so that a change meanwhile is noticed next time.
        current = fingerprint(self._variant)
        sets_are_right = all(desired[part] == installed[part] for part in installed)
        if sets_are_right and self._may_skip_listing(occasion, current):
            return Repair()
        begun = time.monotonic()
        chains = read_chains(self._variant, self._families())
        drift = tuple(_differences(installed | _chain_layout(chains), desired))
        self._right_fingerprint = None if drift else current
        if drift:
            self._write(chains, desired, claims)
        ended = time.monotonic()
        self._next_listing = ended + min(LISTING_PAUSE * (ended - begun), _LONGEST_PAUSE)
        return Repair(drift)

    def owner(self, address: IPAddress) -> str | None:
        """See `ProbeBackend`. The whole set is read: the kernel has no question for a comment."""
        return self._owners(address.version).get(address)

    def owners(self) -> dict[IPAddress, str]:
        """See `ProbeBackend`."""
        return {
            address: owner
            for version in self._rules.versions
            for address, owner in self._owners(version).items()
        }

    def change(self, deleted: Iterable[IPAddress], added: Owners) -> None:
        """See `ProbeBackend`. One message for each address; an addition replaces the owner."""
        sets = self._open()
        for address in deleted:
            if address not in added:
                sets.delete(SETS[address.version], address)
        for address, owner in added.items():
            sets.add(SETS[address.version], address, owner)

    def contents_fingerprint(self) -> Hashable:
        """See `ProbeBackend`: the numbers of elements, which an exchange does not change."""
        headers = [self._open().header(SETS[version]) for version in self._rules.versions]
        counts = tuple(header and header.count for header in headers)
        # Before Linux 4.10 there is no count: nothing equals this object.
        return counts if all(counts) else object()

    def unchanged_since(self, generation: int) -> bool:  # noqa: ARG002 - there is none
        """See `ProbeBackend`: never known, as the kernel does not count changes of ipsets."""
        return False

    def close(self) -> None:
        """See `ProbeBackend`."""
        sets, self._ipsets = self._ipsets, None
        if sets is not None:
            sets.close()

    def _open(self) -> Ipsets:
        if self._ipsets is None:
            self._ipsets = Ipsets()
        return self._ipsets

    def _owners(self, version: int) -> dict[IPAddress, str]:
        comments = self._open().comments(SETS[version])
        return {address: owner_in(comment) for address, comment in comments.items()}

    def _may_skip_listing(self, occasion: Occasion, current: Hashable) -> bool:
        """Whether the chains can be taken to be as they were when listed last."""
        unchanged = current == self._right_fingerprint
        recent = time.monotonic() < self._next_listing
        if occasion is Occasion.START:
            return False
        if self._variant is Variant.NFT:
            # Its fingerprint has the rules that count: if it has changed, one of them has,
            # and only pods that ask all at once share a listing.
            return unchanged or (recent and occasion is Occasion.POD)
        # A legacy fingerprint changes with any rule in the table and not with each of ours:
        # it suffices between the looks at pods, and changes are no reason for haste.
        return recent or (unchanged and occasion is Occasion.CHANGE)

    def _desired(self) -> Layout:
        """The desired layout; without IPv6 where the kernel or the programs have none of it."""
        is_reduced = self._rules != self._configured_rules
        if is_reduced and time.monotonic() < self._next_v6_try:
            return reference(self._variant, self._rules)
        try:
            desired, rules = (
                reference(self._variant, self._configured_rules),
                self._configured_rules,
            )
        except RulesError as error:
            if not self._configured_rules.ipv6:
                raise
            rules = replace(self._configured_rules, ipv6=False)
            # Raises where IPv4 cannot be had either: then it is no fault of one family.
            desired = reference(self._variant, rules)
            self._next_v6_try = time.monotonic() + _V6_RETRY_AFTER
            if not is_reduced:
                log.warning(
                    "health probes of IPv6 addresses go through ztunnel; on a node without IPv6,"
                    " set AMBIENT_IPV6=false",
                    reason=str(error),
                )
        self._rules = rules
        return desired

    def _families(self) -> list[Family]:
        # If IPv6 is switched off, a chain of it has to go. Where it cannot be had, there is none.
        return [Family.V4] if self._rules != self._configured_rules else list(Family)

    def _write(self, chains: ProbeChains, desired: Layout, claims: Claims) -> None:
        sets = self._open()
        for version, family in _FAMILIES.items():
            chain = chains.get(family)
            is_desired = version in self._rules.versions
            replaced = is_desired and sets.header(SETS[version]) != desired[_set_part(version)]
            if chain and (replaced or not is_desired):
                # The kernel keeps a set for as long as a rule uses it.
                remove_chains(self._variant, {family: chain})
                chain = None
            if replaced:
                self._replace_set(version, claims)
            if is_desired and _comparable(chain) != desired[_chain_part(family)]:
                write_chain(self._variant, family, self._rules, chain)

    def _replace_set(self, version: int, claims: Claims) -> None:
        sets, name = self._open(), SETS[version]
        owners = self._owners(version) | claimed_addresses(claims, {version})
        if sets.header(name):
            sets.destroy(name)
        sets.create(name, version)
        for address, owner in owners.items():
            sets.add(name, address, owner)


@lru_cache(maxsize=8)
def reference(variant: Variant, rules: ProbeRules) -> Layout:
    """What is installed after `rules` were written. Raises `RulesError`.

    The rules are written and read in a network namespace made for it, because each
    version of the programs prints them in its own notation.
    """

    def write_and_read() -> Layout:
        with contextlib.closing(Ipsets()) as sets:
            for version in rules.versions:
                sets.create(SETS[version], version)
                write_chain(variant, _FAMILIES[version], rules, None)
            return _set_layout(sets, rules) | _chain_layout(read_chains(variant))

    return in_scratch_netns(write_and_read)


def _set_layout(sets: Ipsets, rules: ProbeRules) -> dict[str, object]:
    # A set that is not wanted does no harm, and the other variant may still use it.
    return {_set_part(version): sets.header(SETS[version]) for version in rules.versions}


def _chain_layout(chains: ProbeChains) -> dict[str, object]:
    return {_chain_part(family): _comparable(chain) for family, chain in chains.items()}


def _set_part(version: int) -> str:
    return f"ipset {SETS[version]}"


def _chain_part(family: Family) -> str:
    return f"{family} chain {CHAIN}"


def _comparable(chain: Chain[str] | None) -> object:
    # Which rules of others lead to the chain as well is not ours to change.
    return chain and (chain.jumps, chain.rules)


def _differences(installed: Layout, desired: Layout) -> Iterator[str]:
    for part in (*desired, *(part for part in installed if part not in desired)):
        if installed.get(part) is None:
            yield f"{part} is missing"
        elif part not in desired:
            yield f"{part} is not wanted"
        elif installed[part] != desired[part]:
            yield f"{part} differs"
