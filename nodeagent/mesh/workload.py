"""One row of the table: a pod, what was decided for it, and what stands for it on the node."""

import asyncio
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import partial
from typing import Generic, Protocol, Self, TypeVar

from nodeagent.mesh.backoff import Backoff
from nodeagent.mesh.eligibility import Decision, Wanted
from nodeagent.mesh.pod import REDIRECTION, Pod, PodUID
from nodeagent.mesh.sandbox import Sandbox

LONGEST_STIRRED = 1.0
"""Seconds; a rule that is deleted is back within a second, however busy its pod keeps us."""


class HeldNamespace(Protocol):
    """A pod's network namespace, held open by one descriptor that `close` gives back."""

    @property
    def id(self) -> Hashable:
        """What tells two namespaces apart."""

    def close(self) -> None:
        """Let go of it. Idempotent."""


N = TypeVar("N", bound=HeldNamespace)
N_contra = TypeVar("N_contra", bound=HeldNamespace, contravariant=True)


class Watch(Protocol):
    """Hears from the kernel when something in a pod's namespace is changed."""

    def arm(self) -> None:
        """Forget what was heard; call once when something changes from now on."""

    def close(self) -> None:
        """Stop listening. Idempotent."""


class Redirection(Enum):
    """What the cluster is told; absent means not redirected (annotation of `REDIRECTION`)."""

    PENDING = "pending"
    ENABLED = "enabled"


class State(Enum):
    """Where a pod stands on its way into or out of the mesh."""

    NEW = "new"
    OUTSIDE = "outside"
    WAITING = "waiting"
    PENDING = "pending"
    ENROLLED = "enrolled"
    UNSERVED = "unserved"
    LEAVING = "leaving"
    RETRYING = "retrying"
    FAILED = "failed"


@dataclass(slots=True, eq=False, kw_only=True)
class Workload(Generic[N]):
    """What the agent knows of one pod UID. Only that UID's worker changes what stands."""

    seen: Pod
    """The pod as its source tells of it."""
    decision: Decision
    gone: bool = False
    """The pod no longer exists; its namespace is not entered any more."""
    existing: bool = False
    """It was there before the agent: a former agent may have left rules in it."""
    slipped_by: bool = False
    """It was running, and in the mesh, when it was first seen (L19)."""

    sandbox: Sandbox | None = None
    """What the CNI plugin handed over last."""
    sandbox_ended: float | None = None
    """Loop time at which the runtime began to take the pod's sandbox down."""

    state: State = State.NEW
    detail: str = ""
    since: float = field(default_factory=time.time)

    namespace: N | None = None
    watch: Watch | None = None
    """Over the rules and routes in `namespace`."""
    redirected: Pod | None = None
    """The pod as it was when its rules were last found or made right in `namespace`."""
    verified: float | None = None
    """When that was, in seconds since the epoch."""
    accepted: bool = False
    """A ztunnel has accepted `namespace`. Stays true while ztunnel is away."""
    leaving_since: float | None = None
    """Loop time at which nothing new was sent to ztunnel any more."""
    reported: Redirection | None = None
    """What the pod's annotation says, as far as is known here."""
    was_annotated: bool = False
    """The annotation said at first that the pod is redirected: a former agent's rules may stand."""
    promised: bool = False
    """The annotation was `enabled` at first, or as it was last written here (L41).

    What the watch tells of it may be older.
    """
    broken_since: float | None = None
    """Loop time since when the pod is annotated `enabled`, and is not."""
    told_broken: bool = False
    warned: bool = False
    """That the pod is retried, with the reason of now."""
    uncleaned: str = ""
    """Why leftovers of another backend stay in `namespace`, or may; told once."""
    mended: int = 0
    """How often something else had changed the redirection, and it was put right."""
    contested_from: int = 5
    """The number of times at which that is reported; doubles each time."""
    stirred: Backoff = field(default_factory=partial(Backoff, longest=LONGEST_STIRRED))
    """Between looks at a namespace in which something keeps changing."""
    last_stirred: float = 0.0

    attempts: int = 0
    news: asyncio.Event = field(default_factory=asyncio.Event)
    """Set at the end of the attempt that runs now or next."""
    wake: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def pod(self) -> Pod:
        """The pod, with the addresses of its sandbox, which the API server knows later."""
        if self.sandbox is None:
            return self.seen
        return replace(self.seen, addresses=self.sandbox.addresses)

    @property
    def uid(self) -> PodUID:
        """The key of the row."""
        return self.seen.uid

    @property
    def kept(self) -> bool:
        """Whether ztunnel must not drop the pod, though it may not be handed over yet (L31).

        So for every pod that is in the mesh or may be, and for one that was there at the
        start until it is known to be out: a former agent may have handed it over, and without
        ztunnel its rules would let nothing through.
        """
        return not self.gone and (self.decision.wanted is not Wanted.NO or self.existing)

    def attempted(self) -> None:
        """An attempt is over, however it ended."""
        self.attempts += 1
        self.news.set()
        self.news = asyncio.Event()

    async def until(self, condition: Callable[[Self], bool]) -> None:
        """Return once `condition` holds; it is looked at after each attempt."""
        while not condition(self):
            await self.news.wait()

    def be(self, state: State, detail: str) -> bool:
        """Note where the pod stands. Returns whether that is news."""
        if (state, detail) == (self.state, self.detail):
            return False
        if state is not self.state:
            self.since = time.time()
        self.state, self.detail = state, detail
        return True

    def let_go(self) -> None:
        """Close the namespace; nothing of it is known any more."""
        namespace, self.namespace = self.namespace, None
        watch, self.watch = self.watch, None
        self.redirected, self.verified, self.leaving_since = None, None, None
        self.accepted = False
        if watch is not None:
            watch.close()
        if namespace is not None:
            namespace.close()

    def describe(self) -> dict[str, object]:
        """The row as JSON values, for people and tools."""
        return {
            "uid": self.uid,
            "namespace": self.pod.namespace,
            "name": self.pod.name,
            "wanted": self.decision.wanted.value,
            "reason": self.decision.reason,
            "state": self.state.value,
            "detail": self.detail,
            "since": self.since,
            "addresses": [str(address) for address in self.pod.addresses],
            "netns": str(self.namespace.id) if self.namespace else None,
            "redirection": self.reported.value if self.reported else None,
            "verified": self.verified,
            "mended": self.mended,
            "uncleaned": self.uncleaned,
        }


def reported_on(pod: Pod) -> Redirection | None:
    """What the pod's annotation says; an unknown value says nothing."""
    try:
        return Redirection(pod.annotations.get(REDIRECTION))
    except ValueError:
        return None
