"""The host's rules and sets for health probes in nftables: one table with one chain.

A change is one transaction, so no probe meets half of it. The kernel counts all
transactions in a network namespace (its generation): while the count has not changed
since the rules were found right, nobody has changed them, and one question tells so.
"""

from collections.abc import Iterable

from nodeagent.mesh.pod import IPAddress
from nodeagent.netfilter.errors import RulesError
from nodeagent.netfilter.nft_state import table_differences
from nodeagent.probes.backend import Occasion, Repair
from nodeagent.probes.nft_rules import TABLE, render, render_additions, render_deletions
from nodeagent.probes.nft_table import ProbeTable, reference
from nodeagent.probes.rules import Claims, Owners, ProbeRules, claimed_addresses


class NftProbeBackend:
    """A `ProbeBackend` for nftables.

    Its connection to the kernel is kept between calls, because closing it takes 8 to
    24 ms after a deletion, see `ProbeTable`.
    """

    def __init__(self, rules: ProbeRules) -> None:
        """`rules` are the desired ones. No connection is opened yet."""
        self._rules = rules
        self._table: ProbeTable | None = None
        self._right_generation: int | None = None
        """The generation at which the rules, apart from the addresses, were right."""

    @property
    def rules(self) -> ProbeRules:
        """See `ProbeBackend`."""
        return self._rules

    def repair(self, claims: Claims, occasion: Occasion) -> Repair:  # noqa: ARG002 - the generation tells on every occasion
        """See `ProbeBackend`. The table is replaced as a whole, in one transaction."""
        table = self._open()
        generation = table.generation()  # before the rules are read: a change meanwhile counts
        if generation == self._right_generation:
            return Repair(generation=generation)
        installed = table.state()
        if installed is None:
            drift: tuple[str, ...] = (f"table {TABLE} is missing",)
        else:
            drift = tuple(table_differences(installed, reference(self._rules)))
        if not drift:
            self._right_generation = generation
            return Repair(generation=generation)
        owners = {
            address: owner
            for address, owner in table.owners().items()
            if address.version in self._rules.versions
        }
        owners |= claimed_addresses(claims, self._rules.versions)
        table.apply(render(self._rules, owners))
        return Repair(drift)

    def owner(self, address: IPAddress) -> str | None:
        """See `ProbeBackend`. Takes 0.02 ms, however many addresses there are."""
        return self._open().owner(address)

    def owners(self) -> dict[IPAddress, str]:
        """See `ProbeBackend`. Takes 2 to 4 ms for 1,000 addresses."""
        return self._open().owners()

    def change(self, deleted: Iterable[IPAddress], added: Owners) -> None:
        """See `ProbeBackend`. All of it is one transaction."""
        # nft cannot change an element's comment: the element is deleted and added.
        self._open().apply(render_deletions(deleted) + render_additions(added))

    def contents_fingerprint(self) -> int:
        """See `ProbeBackend`: the generation, which counts changes of elements as well."""
        return self._open().generation()

    def unchanged_since(self, generation: int) -> bool:
        """See `ProbeBackend`."""
        if self._table is None:
            return False
        try:
            return self._table.generation() == generation
        except RulesError:
            self.close()
            return False

    def close(self) -> None:
        """See `ProbeBackend`."""
        table, self._table = self._table, None
        if table is not None:
            table.close()

    def _open(self) -> ProbeTable:
        if self._table is None:
            self._table = ProbeTable()
        return self._table
