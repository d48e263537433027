"""What the agent holds of a pod's netns: an open descriptor, a watch, and what is true inside.

A `HeldNetns` exists from the moment a pod's netns is opened until the agent lets go of it.
Everything that is known of the netns is in this one object, so that nothing of an earlier
netns can be taken for the next one's: a new sandbox means a new object. Only the steps in
`enrollment.py` write to it.
"""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from nodeagent.mesh.pod import Pod


class NetnsHandle(Protocol):
    """A network namespace, kept open by one descriptor that `close` gives back."""

    @property
    def id(self) -> Hashable:
        """What tells two network namespaces apart."""

    def close(self) -> None:
        """Close the descriptor. Idempotent."""


N = TypeVar("N", bound=NetnsHandle)
N_contra = TypeVar("N_contra", bound=NetnsHandle, contravariant=True)


class Watch(Protocol):
    """Hears from the kernel that rules or routes in a pod's netns have changed."""

    def arm(self) -> None:
        """Forget what was heard so far, and report the next change, once."""

    def close(self) -> None:
        """Stop listening. Idempotent."""


@dataclass(slots=True, eq=False)
class HeldNetns(Generic[N]):
    """One pod's netns, held open, and what the agent has done in it."""

    netns: N
    watch: Watch | None = None
    """None: nothing was installed here yet by this agent."""
    installed_for: Pod | None = None
    """The pod as it was when the redirection was last found or made right."""
    verified: float | None = None
    """When that was, in seconds since the epoch."""
    lost_since: float | None = None
    """Since when the redirection could not be made right; ``time.monotonic``. None: it is right."""
    accepted: bool = False
    """A ztunnel has accepted this netns. Stays true while ztunnel is away."""
    draining_since: float | None = None
    """The event loop's time when the agent stopped sending new connections to ztunnel."""
    uncleaned: str = ""
    """Why leftovers of another backend stay here, or may stay; empty where none do."""

    def close(self) -> None:
        """Stop watching, and close the netns. Idempotent."""
        watch, self.watch = self.watch, None
        if watch is not None:
            watch.close()
        self.netns.close()
