"""What `HostProbes` needs of the language in which the host's rules are written.

`HostProbes` decides which pod's addresses should be in the sets; a backend reads and
writes the rules and sets in the kernel. There are two: `nft_backend` (one table) and
`iptables_backend` (a chain in table nat, and ipsets; for iptables-nft and -legacy).
"""

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol

from nodeagent.mesh.pod import IPAddress
from nodeagent.probes.rules import Claims, Owners, ProbeRules


class Occasion(Enum):
    """Why the rules are looked at: it says how far an earlier look may be trusted."""

    START = auto()
    """The agent starts. Everything is looked at."""
    CHANGE = auto()
    """The kernel has told of a change somewhere, or it is time to poll."""
    POD = auto()
    """A pod is looked at, perhaps one of many within a second."""


@dataclass(frozen=True, slots=True)
class Repair:
    """What `ProbeBackend.repair` has found and done."""

    drift: tuple[str, ...] = ()
    """What differed from the desired rules, in words. It does not any more."""
    generation: int | None = None
    """The kernel's count of changes at which the rules were found right.

    None where they were not, or where the kernel does not count changes of such rules.
    """


class ProbeBackend(Protocol):
    """The host's rules and sets for health probes in one language.

    Every method but `unchanged_since` and `close` works in the network namespace of the
    thread that calls it, which has to be the host's, and raises ``RulesError``. One
    thread at a time may use a backend.
    """

    @property
    def rules(self) -> ProbeRules:
        """The desired rules; without IPv6 where the node turned out to have none."""

    def repair(self, claims: Claims, occasion: Occasion) -> Repair:
        """Have rules and sets installed as desired.

        What is as desired is not written. A set that has to be written anew keeps the
        addresses that it had, and gets those of `claims`; otherwise no address is touched.
        """

    def owner(self, address: IPAddress) -> str | None:
        """The UID that `address` is in its set for; None where it is in no set."""

    def owners(self) -> dict[IPAddress, str]:
        """All addresses in the sets of the versions in `rules`, see `Owners`."""

    def change(self, deleted: Iterable[IPAddress], added: Owners) -> None:
        """Delete addresses that are in a set, and add others; one in both gets a new owner."""

    def contents_fingerprint(self) -> Hashable:
        """A value that is another one if addresses were put into the sets or taken out."""

    def unchanged_since(self, generation: int) -> bool:
        """Whether nobody has changed rules or sets since `Repair.generation`.

        Takes 0.01 ms, in any thread and whatever its network namespace. False where that
        cannot be told.
        """

    def close(self) -> None:
        """Give back the kernel's sockets. What is called next opens new ones."""
