"""What a backend can do in a pod's netns, and which backends there are on this node.

One backend is chosen by the settings. The other two are only asked what they have left in a
pod, of an earlier setting or of Istio's own agent, and to remove it.
"""

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

    Every method works in the netns of the thread that calls it, reads before it writes
    anything, and raises `RulesError`.
    """

    counted: bool
    """Whether the kernel counts changes of these rules; see `generation`."""

    def inspect(self, spec: RedirectSpec) -> tuple[str, ...]:
        """Say what differs from `spec`; empty where nothing does."""

    def ensure(self, spec: RedirectSpec) -> tuple[str, ...]:
        """Make `spec` true; return what differed before, empty where nothing was written."""

    def is_installed(self) -> bool:
        """Whether there is anything of ours, or of Istio's own agent, in this language."""

    def remove(self) -> bool:
        """Remove that, whatever spec it was made for; return whether there was anything."""


@dataclass(frozen=True, slots=True)
class Swept:
    """What `Backends.sweep` did about leftovers of other backends."""

    removed: tuple[str, ...] = ()
    """Rules that were there and are gone."""
    left: tuple[str, ...] = ()
    """Rules that are still there, each with the reason why they could not be removed."""
    unseen: tuple[str, ...] = ()
    """Backends whose rules could not be read, each with the reason."""


@dataclass(frozen=True, slots=True)
class Backends:
    """The chosen backend, and the others, whose leftovers go once its rules are there (L7, L8)."""

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
        """Remove what the other backends have in the calling thread's netns.

        To be called after the chosen one's rules are there, so that the pod is never without.
        A backend that fails stops neither the next one nor the caller (L35).
        """
        removed, left, unseen = list[str](), list[str](), list[str]()
        for other in self.others:
            try:
                installed = other.is_installed()
            except RulesError as error:
                unseen.append(f"{other} cannot be looked at: {error}")
                continue
            try:
                if installed and other.remove():
                    removed.append(_unwanted(other))
            except RulesError as error:
                left.append(f"rules in {other} cannot be removed: {error}")
        return Swept(tuple(removed), tuple(left), tuple(unseen))

    def fingerprint(self) -> int | None:
        """Return a number that stays the same as long as no rules change in the thread's netns.

        None where there is no such number: the kernel does not count changes of
        iptables-legacy's rules, or the kernel cannot be asked.
        """
        try:
            if not self.chosen.counted or legacy_in_use(*Family):
                return None
            return own_generation()
        except RulesError:
            return None

    def leftovers(self) -> tuple[str, ...]:
        """Say what `sweep` would remove; a backend whose rules cannot be read is passed over."""
        return tuple(_unwanted(other) for other in self.others if _seems_installed(other))


def _seems_installed(backend: Backend) -> bool:
    try:
        return backend.is_installed()
    except RulesError:
        return False


def _unwanted(backend: Backend) -> str:
    return f"rules in {backend} are not wanted"
