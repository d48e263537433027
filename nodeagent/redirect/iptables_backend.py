"""The backend that writes through the iptables programs."""

from nodeagent.redirect.errors import RedirectError
from nodeagent.redirect.iptables import render, render_removal
from nodeagent.redirect.iptables_programs import Variant, restore
from nodeagent.redirect.iptables_provenance import conflicts, proven
from nodeagent.redirect.iptables_standing import Tables, differences, read, reference
from nodeagent.redirect.rules import Family, PodRedirect


class IptablesBackend:
    """See `nodeagent.redirect.backend.Backend`. At most one listing and one write per family.

    Tables of the kernel's own that a write has made stay, empty: others may have come to
    use them, and legacy ones cannot be removed at all.
    """

    def __init__(self, variant: Variant) -> None:
        self._variant = variant

    def __str__(self) -> str:
        return f"iptables-{self._variant}"

    def inspect(self, spec: PodRedirect) -> tuple[str, ...]:
        """See `Backend`."""
        found = self._differences(spec, read(self._variant))
        return tuple(f"{family} {what}" for family in found for what in found[family])

    def ensure(self, spec: PodRedirect) -> tuple[str, ...]:
        """See `Backend`. Each table of each family is a transaction; a family is written whole."""
        have = read(self._variant)
        if foreign := "; ".join(conflicts(have)):
            raise RedirectError(
                f"{foreign} of somebody else, a sidecar perhaps, is in the place of ours: take it"
                " out, or let NATIVE_NFTABLES write rules that do not meet it"
            )
        found = self._differences(spec, have)
        for family in found:
            text = render(spec, family, replacing=have.get(family))
            restore(self._variant, family, text)
        return tuple(f"{family} {what}" for family in found for what in found[family])

    def stands(self) -> bool:
        """See `Backend`."""
        return bool(proven(read(self._variant)))

    def remove(self) -> bool:
        """See `Backend`."""
        have = proven(read(self._variant))
        for family, standing in have.items():
            restore(self._variant, family, render_removal(standing))
        return bool(have)

    def _differences(self, spec: PodRedirect, have: Tables) -> dict[Family, tuple[str, ...]]:
        """By family; one that is as it should be is left out."""
        # A pod that was just made has nothing of ours: nothing to compare with.
        if not have:
            return dict.fromkeys(spec.families, ("rules are missing",))
        want = reference(self._variant, spec)
        found = {
            family: tuple(differences(have.get(family, {}), want.get(family, {})))
            for family in Family
        }
        return {family: what for family, what in found.items() if what}
