"""What a backend does for a pod, and which one is in use."""

from dataclasses import dataclass
from typing import Protocol, Self

from nodeagent.redirect.generation import own_generation
from nodeagent.redirect.iptables_backend import IptablesBackend
from nodeagent.redirect.iptables_programs import Variant
from nodeagent.redirect.iptables_standing import legacy_in_use
from nodeagent.redirect.nftables_backend import NftablesBackend
from nodeagent.redirect.rules import PodRedirect


class Backend(Protocol):
    """The rules of pods in one of the kernel's languages.

    Every method works in the network namespace of the thread that calls it, looks
    before it touches anything, and raises `RedirectError`.
    """

    def inspect(self, spec: PodRedirect) -> tuple[str, ...]:
        """Say what differs from `spec`; empty where all is as intended."""

    def ensure(self, spec: PodRedirect) -> tuple[str, ...]:
        """Make `spec` true; return what differed before, empty where nothing was touched."""

    def stands(self) -> bool:
        """Whether anything of ours, or of Istio's own agent, stands in this language."""

    def remove(self) -> bool:
        """Remove it, whatever it was made for; return whether anything stood."""


@dataclass(frozen=True, slots=True)
class Backends:
    """The backend in use, and those whose leftovers go once its rules are in place (L7, L8)."""

    chosen: Backend
    others: tuple[Backend, ...]

    @classmethod
    def choose(cls, variant: Variant | None) -> Self:
        """Take iptables in this `variant`, or nftables for None."""
        iptables = {each: IptablesBackend(each) for each in Variant}
        if variant is None:
            return cls(NftablesBackend(), tuple(iptables.values()))
        chosen = iptables.pop(variant)
        return cls(chosen, (NftablesBackend(), *iptables.values()))

    def sweep(self) -> tuple[str, ...]:
        """Remove what the others have in the calling thread's namespace; return whose it was.

        For after the chosen one's rules are in place. Raises `RedirectError`.
        """
        return tuple(f"rules in {other} are not wanted" for other in self.others if other.remove())

    def fingerprint(self) -> int | None:
        """What stays the same for as long as no rules change in the thread's namespace.

        None where nothing tells that: iptables-legacy's rules are not counted by the
        kernel. Raises `RedirectError`.
        """
        if not isinstance(self.chosen, NftablesBackend) or legacy_in_use():
            return None
        return own_generation()

    def leftovers(self) -> tuple[str, ...]:
        """What `sweep` would remove. Raises `RedirectError`."""
        return tuple(f"rules in {other} are not wanted" for other in self.others if other.stands())
