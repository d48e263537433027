"""What the agent knows of one pod UID: one entry of the table.

Three parts have one writer each. The fields of `Workload` itself are what the pod source
and the container runtime say, and what was decided from it: only the table writes them.
`progress` is written by the pod's worker. `annotation` has methods for both, and is the
only one that writes its own fields.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Generic, Self

from nodeagent.mesh.annotation import PodAnnotation
from nodeagent.mesh.eligibility import Decision, Wanted
from nodeagent.mesh.held import HeldNetns, N
from nodeagent.mesh.pod import Pod, PodUID
from nodeagent.mesh.progress import Progress, State
from nodeagent.mesh.sandbox import Sandbox


@dataclass(slots=True, eq=False, kw_only=True)
class Workload(Generic[N]):
    """One pod, what was decided for it, and how far that is carried out."""

    seen: Pod
    """The pod as its source says."""
    decision: Decision
    gone: bool = False
    """The pod no longer exists; its netns is not entered any more."""
    existing: bool = False
    """The pod was there before the agent: an earlier agent may have left rules in it."""
    ran_unprotected: bool = False
    """The pod was wanted in the mesh and running already when it was first seen."""
    sandbox: Sandbox | None = None
    """What the CNI plugin has handed over last."""
    sandbox_ended: float | None = None
    """The event loop's time when the runtime began to take the pod's sandbox down."""

    heard: float = field(default_factory=time.monotonic)
    """When something of the above was new last; ``time.monotonic``."""

    annotation: PodAnnotation
    progress: Progress[N] = field(default_factory=Progress)

    @property
    def uid(self) -> PodUID:
        """The pod's UID."""
        return self.seen.uid

    @property
    def pod(self) -> Pod:
        """The pod, with its sandbox's addresses, which the API server knows only later."""
        if self.sandbox is None:
            return self.seen
        return replace(self.seen, addresses=self.sandbox.addresses)

    @property
    def kept(self) -> bool:
        """Whether ztunnel must not drop the pod, though it may not be handed over yet.

        So for every pod that is in the mesh or may be, and for one that was there when the
        agent started until it is known to be outside: an earlier agent may have handed it
        over, and without ztunnel its rules would let nothing through.
        """
        if self.gone:
            return False
        maybe_inside = self.existing and not self.progress.known_outside
        return maybe_inside or self.decision.wanted is not Wanted.NO

    @property
    def state(self) -> State:
        """Where the pod is on its way into or out of the mesh."""
        return self.progress.state

    @property
    def detail(self) -> str:
        """The reason for `state`, in words."""
        return self.progress.detail

    @property
    def held(self) -> HeldNetns[N] | None:
        """What is held of the pod's netns; None: it is not open."""
        return self.progress.held

    @property
    def netns(self) -> N | None:
        """The pod's netns, on loan; None: it is not open."""
        return self.held.netns if self.held else None

    @property
    def unredirected_since(self) -> float | None:
        """Since when the pod should be redirected and is not known to be; ``time.monotonic``.

        None: it is redirected, or need not be: it is not wanted, has no address yet, or no
        sandbox any more.
        """
        if self.gone or self.decision.wanted is not Wanted.YES or self.sandbox_ended is not None:
            return None
        if self.held is not None and self.held.installed_for is not None:
            return self.held.lost_since
        if not self.pod.addresses:
            return None
        return self.progress.clock.began if self.progress.clock else self.heard

    async def until(self, condition: Callable[[Self], bool]) -> None:
        """Return once `condition` holds; it is evaluated after each run of the pod's steps."""
        await self.progress.until(lambda: condition(self))

    def describe(self) -> dict[str, object]:
        """Describe it as JSON values, for `nodeagent status`."""
        pod, progress, held = self.pod, self.progress, self.held
        return {
            "uid": self.uid,
            "namespace": pod.namespace,
            "name": pod.name,
            "wanted": self.decision.wanted.value,
            "reason": self.decision.reason,
            "state": progress.state.value,
            "detail": progress.detail,
            "since": progress.since,
            "addresses": [str(address) for address in pod.addresses],
            "netns": str(held.netns.id) if held else None,
            "redirection": self.annotation.value.value if self.annotation.value else None,
            "verified": held.verified if held else None,
            "repairs": progress.repairs,
            "uncleaned": held.uncleaned if held else "",
        }
