"""What a backend does for a pod, and which one is in use."""

from dataclasses import dataclass
from typing import Protocol, Self

from nodeagent.netfilter.errors import RulesError
from nodeagent.netfilter.generation import own_generation
from nodeagent.netfilter.iptables_legacy import legacy_in_use
from nodeagent.netfilter.iptables_programs import Variant
from nodeagent.netfilter.rule import Family
from nodeagent.redirect.iptables_backend import IptablesBackend
from nodeagent.redirect.nft_backend import NftablesBackend
from nodeagent.redirect.rules import RedirectSpec


class Backend(Protocol):
    """The rules of pods in one of the kernel's languages.

    Every method works in the network namespace of the thread that calls it, looks
    before it touches anything, and raises `RulesError`.
    """

    counted: bool
    """Whether the kernel counts changes of these rules; see `generation`."""

    def inspect(self, spec: RedirectSpec) -> tuple[str, ...]:
        """Say what differs from `spec`; empty where all is as intended."""

    def ensure(self, spec: RedirectSpec) -> tuple[str, ...]:
        """Make `spec` true; return what differed before, empty where nothing was touched."""

    def stands(self) -> bool:
        """Whether anything of ours, or of Istio's own agent, stands in this language."""

    def remove(self) -> bool:
        """Remove it, whatever it was made for; return whether anything stood."""


@dataclass(frozen=True, slots=True)
class Swept:
    """What `Backends.sweep` did about leftovers of other backends."""

    removed: tuple[str, ...] = ()
    """Rules that stood and are gone."""
    left: tuple[str, ...] = ()
    """Rules that stand still, each with the reason why they could not be removed."""
    unseen: tuple[str, ...] = ()
    """Backends that could not be looked at, each with the reason."""


@dataclass(frozen=True, slots=True)
class Backends:
    """The backend in use, and those whose leftovers go once its rules are in place (L7, L8)."""

    chosen: Backend
    others: tuple[Backend, ...]

    @classmethod
    def choose(cls, variant: Variant | None) -> Self:
        """Take iptables in this `variant`, or nftables for None."""
        iptables = {each: IptablesBackend(each, chosen=each is variant) for each in Variant}
        if variant is None:
            return cls(NftablesBackend(), tuple(iptables.values()))
        chosen = iptables.pop(variant)
        return cls(chosen, (NftablesBackend(), *iptables.values()))

    def sweep(self) -> Swept:
        """Remove what the others have in the calling thread's namespace.

        For after the chosen one's rules are in place. A backend that fails stops neither
        the next one nor the caller (L35).
        """
        removed, left, unseen = list[str](), list[str](), list[str]()
        for other in self.others:
            try:
                stands = other.stands()
            except RulesError as error:
                unseen.append(f"{other} cannot be looked at: {error}")
                continue
            try:
                if stands and other.remove():
                    removed.append(_unwanted(other))
            except RulesError as error:
                left.append(f"rules in {other} cannot be removed: {error}")
        return Swept(tuple(removed), tuple(left), tuple(unseen))

    def fingerprint(self) -> int | None:
        """What stays the same for as long as no rules change in the thread's namespace.

        None where nothing tells that: iptables-legacy's rules are not counted by the
        kernel, or it cannot be asked.
        """
        try:
            if not self.chosen.counted or legacy_in_use(*Family):
                return None
            return own_generation()
        except RulesError:
            return None

    def leftovers(self) -> tuple[str, ...]:
        """What `sweep` would remove; a backend that cannot be looked at is passed over."""
        return tuple(_unwanted(other) for other in self.others if _stands(other))


def _stands(backend: Backend) -> bool:
    try:
        return backend.stands()
    except RulesError:
        return False


def _unwanted(backend: Backend) -> str:
    return f"rules in {backend} are not wanted"
