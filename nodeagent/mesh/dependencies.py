"""What the heart asks of the rest of the agent, as protocols.

The heart does no I/O. Whatever touches the kernel, ztunnel or the cluster is behind one
of these protocols; `nodeagent/agent/` puts real objects behind them, the tests of the
heart put a model of a node. `N` is the class of an open netns.
"""

from dataclasses import dataclass
from typing import Generic, Protocol

from nodeagent.mesh.annotation import Redirection
from nodeagent.mesh.held import N, N_contra, Watch
from nodeagent.mesh.pod import Pod, PodUID
from nodeagent.observer import NOBODY, Observer


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a look into a pod's netns has found; all empty where all was as desired."""

    differed: tuple[str, ...] = ()
    """What of the redirection was not as desired, in words; `ensure` has put that right."""
    silent: tuple[int, ...] = ()
    """ztunnel's ports on which nobody listens."""
    uncleaned: str = ""
    """Why another backend's leftovers stay, or may stay; the redirector tries again by itself."""


class NetnsFinder(Protocol[N]):
    """Finds the network namespaces of pods."""

    async def find(self, pod: Pod, handed_over: str | None, held: N | None = None) -> N:
        """Open and verify the pod's netns; the caller owns it.

        `handed_over` is its path on the host, if the CNI plugin has handed it over. `held` is
        the netns that was found before and is still open: it is returned itself if it is
        still the pod's.

        Raises ``RetryError`` where there is no such netns yet, ``GiveUpError`` where what
        was found can never be the pod's.
        """

    def found_at(self, pod: Pod) -> str:
        """Where the pod's netns was found last, and who has named it; empty: not known."""


class Redirector(Protocol[N_contra]):
    """Installs the redirection (rules, policy rules, routes) in a pod's netns, and removes it.

    Every method raises ``RetryError`` where the kernel refuses.
    """

    async def watch(self, netns: N_contra, uid: PodUID, /) -> Watch:
        """Have changes in the netns reported for `uid`; the caller owns the watch."""

    async def ensure(self, netns: N_contra, pod: Pod) -> Inspection:
        """Make the redirection what `pod` should have, and look who listens on its ports."""

    async def is_installed(self, netns: N_contra) -> bool:
        """Whether any redirection of ours is there, of whatever version or settings."""

    async def inspect(self, netns: N_contra, pod: Pod) -> tuple[str, ...]:
        """Say in words what differs from what `pod` should have, and change nothing."""

    async def release(self, netns: N_contra, pod: Pod) -> int:
        """Send no new connection to ztunnel; return how many open ones go through it."""

    async def remove(self, netns: N_contra, pod: Pod) -> bool:
        """Remove everything of ours. Returns whether there was anything."""


class Ztunnels(Protocol[N_contra]):
    """The ztunnels that are connected."""

    async def offer(self, pod: Pod, netns: N_contra) -> bool:
        """Hand the pod to ztunnel. Returns whether one has accepted it; False: none is there.

        The netns is on loan until `reclaim` or `withdraw`. Raises ``RefusedError`` where
        ztunnel refuses the pod, ``GiveUpError`` where it can never be handed over.
        """

    def reclaim(self, uid: PodUID) -> None:
        """Send nothing more of the pod's netns: it is about to be closed.

        ztunnel keeps what it has for the pod.
        """

    async def withdraw(self, uid: PodUID) -> None:
        """Have every ztunnel that has heard of the pod drop it; return when all were asked to."""


class Probes(Protocol):
    """The host's set of addresses whose health probes reach the app without ztunnel."""

    async def ensure(self, pod: Pod) -> tuple[str, ...]:
        """Have the pod's addresses in the set. Returns what differed, in words."""

    async def remove(self, uid: PodUID) -> None:
        """Remove the addresses that are this pod's; one may be another pod's by now."""


class Reporter(Protocol):
    """Tells the cluster, by annotation and events.

    Every method returns at once; the reporter delivers later, and tries again by itself.
    """

    def report(self, pod: Pod, redirection: Redirection | None) -> None:
        """Set the pod's annotation to `redirection`; None: take it off."""

    def delivered(self, uid: PodUID) -> bool:
        """Whether the API server has taken what was reported of the pod last."""

    def contested(self, pod: Pod, times: int) -> None:
        """Something else keeps changing the redirection, which was repaired so many `times`."""

    def unprotected(self, pod: Pod) -> None:
        """The pod belongs in the mesh, and was running before it was redirected."""

    def broken(self, pod: Pod, reason: str) -> None:
        """The pod is annotated `enabled`, and for some time its traffic has not been served."""

    def netns_conflict(self, pod: Pod, netns: str, holder: Pod) -> None:
        """The netns that was found for `pod` is that of `holder`; it was refused."""

    def failed(self, pod: Pod, reason: str) -> None:
        """The enrollment has failed for good, until something about the pod changes."""

    def forget(self, uid: PodUID) -> None:
        """The pod is gone: drop what was not delivered yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dependencies(Generic[N]):
    """All of the above, for one node."""

    netns_finder: NetnsFinder[N]
    redirector: Redirector[N]
    ztunnels: Ztunnels[N]
    probes: Probes
    reporter: Reporter
    observer: Observer = NOBODY
    removal_grace: float = 0.0
    """Seconds for which a pod that leaves the mesh keeps its open connections through ztunnel."""
