"""Whether a pod is really redirected: asked of the kernel now, because a person wants to know.

A look takes a job in the pod's netns, as the pod's own worker does. So there is one look at a
time, on whoever's behalf, and none in a pod whose enrollment is under way: nothing waits for
it. And two looks at a pod are `PAUSE` apart, because looks are on the account of the pod:
whoever asks in a loop must not use up what repairs of the pod need. Who has asked before a look
begins shares its result with others.
"""

import asyncio
import time
from dataclasses import dataclass
from typing import Generic, Protocol

from nodeagent.mesh.dependencies import Inspection
from nodeagent.mesh.eligibility import Wanted
from nodeagent.mesh.errors import RetryError
from nodeagent.mesh.held import N, N_contra
from nodeagent.mesh.pod import Pod, PodUID
from nodeagent.mesh.table import Table
from nodeagent.mesh.workload import Workload

PAUSE = 1.0
"""Seconds between two looks at a pod. A look takes some milliseconds of the processor, and a
netns is forgiven 10 ms of them each second."""
PATIENCE = 5.0
"""Seconds for one pod, which may have made looks at it slow."""
ALL_PATIENCE = 30.0
"""Seconds for all pods of the node, and for looks that others have asked for before."""


class Looks(Protocol[N_contra]):
    """Looks into a pod's netns."""

    async def look(self, netns: N_contra, pod: Pod) -> Inspection:
        """What is not as `pod` should have it; writes nothing. Raises ``RetryError``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What a look at one pod has found."""

    namespace: str
    name: str
    uid: PodUID
    wanted: str
    """Whether the pod belongs in the mesh: a value of `Wanted`."""
    state: str
    ok: bool
    """The pod is redirected and served, or it does not belong in the mesh."""
    reason: str
    """In words: what is right, or what is wrong."""
    looked: bool = False
    """Whether the kernel was asked."""
    differences: tuple[str, ...] = ()
    """What of the rules and routes is not as desired."""
    silent: tuple[int, ...] = ()
    """ztunnel's ports on which nobody listens."""
    at: float
    """When this was found, in seconds since the epoch."""


class Verifications(Generic[N]):
    """Looks at pods for whoever asks."""

    def __init__(self, table: Table[N], kernel: Looks[N]) -> None:
        self._table = table
        self._kernel = kernel
        self._looking = asyncio.Lock()
        self._last: dict[PodUID, tuple[float, Verification]] = {}
        """The looks of the last second: the event loop's time when each began, and its result."""

    async def of(self, workload: Workload[N], *, asked: float | None = None) -> Verification:
        """Look at one pod; `asked`: the event loop's time before which no look counts."""
        if asked is None:
            asked = asyncio.get_running_loop().time()
        try:
            async with (
                asyncio.timeout_at(asked + ALL_PATIENCE),
                self._looking,
                asyncio.timeout(PATIENCE),
            ):
                return await self._of(workload, asked)
        except TimeoutError:
            return _found(workload, ok=False, reason="not looked at: that takes too long")

    async def all(self) -> list[Verification]:
        """Look at every pod that exists, one after the other."""
        asked = asyncio.get_running_loop().time()
        return [await self.of(workload, asked=asked) for workload in self._table]

    async def _of(self, workload: Workload[N], asked: float) -> Verification:
        if workload.decision.wanted is Wanted.NO or workload.gone:
            reason = "the pod is gone" if workload.gone else workload.decision.reason
            return _found(workload, ok=True, reason=reason)
        held = workload.held
        if held is None or held.installed_for is None:
            detail = workload.detail or workload.decision.reason
            return _found(workload, ok=False, reason=f"{workload.state.value}: {detail}")
        loop = asyncio.get_running_loop()
        if (last := self._last.get(workload.uid)) is not None:
            began, verification = last
            if began >= asked:
                return verification
            if (pause := began + PAUSE - loop.time()) > 0:
                await asyncio.sleep(pause)
                return await self._of(workload, asked)  # it may have changed meanwhile
        began = loop.time()
        try:
            inspection = await self._kernel.look(held.netns, workload.pod)
        except RetryError as error:
            return _found(workload, ok=False, reason=f"not looked at: {error}")
        verification = _judged(workload, inspection, accepted=held.accepted)
        self._last = {uid: each for uid, each in self._last.items() if each[0] > began - PAUSE}
        self._last[workload.uid] = began, verification
        return verification


def _judged(workload: Workload[N], found: Inspection, *, accepted: bool) -> Verification:
    wrong = list(found.differed)
    if not accepted:
        wrong.append("no ztunnel has accepted the pod: its traffic fails")
    elif found.silent:
        ports = ", ".join(map(str, found.silent))
        wrong.append(f"ztunnel does not listen on {ports}: the pod's traffic fails")
    return _found(
        workload,
        ok=not wrong,
        reason="; ".join(wrong) or "rules and routes are as desired, and ztunnel listens",
        looked=True,
        found=found,
    )


def _found(
    workload: Workload[N],
    *,
    ok: bool,
    reason: str,
    looked: bool = False,
    found: Inspection = Inspection(),  # noqa: B008 - frozen
) -> Verification:
    pod = workload.seen
    return Verification(
        namespace=pod.namespace,
        name=pod.name,
        uid=pod.uid,
        wanted=workload.decision.wanted.value,
        state=workload.state.value,
        ok=ok,
        reason=reason,
        looked=looked,
        differences=found.differed,
        silent=found.silent,
        at=time.time(),
    )
