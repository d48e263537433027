"""Whether a new sandbox may go on: only in the mesh, or where its pod is not meant to be."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Hashable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Generic, TypeVar

from nodeagent.cni.attachments import Adding
from nodeagent.cni.errors import CniError, Code
from nodeagent.cni.own_pods import OwnPods
from nodeagent.cni.request import PodName
from nodeagent.mesh.backoff import Backoff
from nodeagent.mesh.eligibility import Policy, Wanted, decide_by_namespace
from nodeagent.mesh.errors import RetryError
from nodeagent.mesh.pod import Namespace, Pod, PodUID
from nodeagent.mesh.sandbox import Sandbox
from nodeagent.mesh.table import Table
from nodeagent.mesh.workload import N, Workload

T = TypeVar("T")

ADD_DEADLINE = 30.0
"""Seconds; the binary waits for 35, kubelet for two minutes."""
CACHE_LAG = 0.25
"""Seconds for which the watch may be behind the runtime before the API server is asked.

Kubelet hears of a pod through a watch like ours, and has volumes to mount first.
Measured with a real API server: 1.3 ms from its answer to the event, 6 ms at the most.
"""

_ASK_TIMEOUT = 5.0
"""Seconds; then the watch is listened to again."""

PodLookup = Callable[[str, str], Awaitable[Pod | None]]
"""Asks the API server for a pod of this node, by namespace and name. None: there is none.

Raises ``RetryError`` where it cannot say.
"""
NamespaceLookup = Callable[[str], Awaitable[Namespace | None]]
"""Likewise for a Kubernetes namespace."""
Identify = Callable[[str], Hashable]
"""Returns the ``id`` of the network namespace at a path of the host. Raises ``OSError``."""
Missing = Callable[[], list[str]]
"""What keeps the agent from being ready, in words; empty when it is."""


@dataclass(slots=True)
class _Waiting:
    """What the request waits for: where its deadline passes, that is the answer."""

    why: Callable[[], str]

    def unanswered(self, error: Exception) -> None:
        """The API server could not say. Unknown is not "no": the pod is held (L16)."""
        self.why = partial(str, error) if str(error) else _no_answer


class Admission(Generic[N]):
    """Decides about sandboxes with the table's one decision for their pod (L26)."""

    def __init__(
        self,
        table: Table[N],
        policy: Policy,
        *,
        own_pods: OwnPods,
        identify: Identify,
        missing: Missing,
        lookup: PodLookup | None,
        lookup_namespace: NamespaceLookup | None,
        deadline: float = ADD_DEADLINE,
    ) -> None:
        """No lookups: the table alone knows of pods, as from a folder of manifests."""
        self._table = table
        self._policy = policy
        self._own_pods = own_pods
        self.identify = identify
        self._missing = missing
        self._lookup = lookup
        self._lookup_namespace = lookup_namespace
        self._deadline = deadline

    def let_through(self, pod: PodName) -> str | None:
        """Say why nobody needs to be asked about `pod`; None: somebody does."""
        if (pod.namespace, pod.name) in self._own_pods:
            return "a pod of the agent"
        settled = decide_by_namespace(pod.namespace, self._policy)
        return settled.reason if settled else None

    def known(self, pod: PodName) -> Workload[N] | None:
        """Return the row of the pod with this UID; none where the UID was not told (L38)."""
        if pod.uid is None:
            return None
        row = self._table.get(PodUID(pod.uid)) or next(
            # A static pod's row has the UID of its mirror in the API.
            (row for row in self._named(pod) if row.seen.sandbox_uid == pod.uid),
            None,
        )
        if row is None or row.gone or row.seen.sandbox_uid != pod.uid:
            return None
        return row

    def holder(self, pod: PodName, netns: str) -> Workload[N] | None:
        """Return the row of the pod whose sandbox has `netns`. Raises ``CniError``."""
        if pod.uid is not None:
            return self.known(pod)
        rows = list(self._named(pod))
        identity = self.identity_of(netns)
        holding = (row for row in rows if row.namespace and row.namespace.id == identity)
        return next(holding, None) or next((row for row in rows if not _is_ending(row.seen)), None)

    def _named(self, pod: PodName) -> Iterator[Workload[N]]:
        return self._table.named(pod.namespace, pod.name)

    def identity_of(self, netns: str) -> Hashable:
        """Tell the namespace at `netns` from others. Raises ``CniError`` where it is gone."""
        try:
            return self.identify(netns)
        except OSError as error:
            raise CniError(
                Code.TRY_AGAIN, f"the sandbox's network namespace {netns} is not there", str(error)
            ) from error

    async def admit(self, pod: PodName, sandbox: Sandbox, adding: Adding) -> str:
        """Return once the sandbox may go on, with the reason. Raises ``CniError``."""
        if (reason := self.let_through(pod)) is not None:
            return reason
        waiting = _Waiting(lambda: f"the agent is starting: waits for {self._list_missing()}")
        try:
            async with asyncio.timeout(self._deadline):
                return await self._admit(pod, sandbox, adding, waiting)
        except TimeoutError as error:
            raise CniError(
                Code.TRY_AGAIN,
                f"pod {pod} is held back, not known to be in the mesh after {self._deadline:g} s",
                waiting.why(),
            ) from error

    async def _admit(
        self, pod: PodName, sandbox: Sandbox, adding: Adding, waiting: _Waiting
    ) -> str:
        await self._table.until_synced()
        row = await self._row(pod, sandbox, waiting)
        await self._decided(row, waiting)
        if not _is_over(row):
            adding.check()
            netns = self.identity_of(sandbox.netns)
            self._hand_over(pod, sandbox, row)
            given = row.sandbox
            waiting.why = lambda: f"{row.state.value}: {row.detail}"
            await row.until(
                lambda row: _is_over(row) or row.sandbox != given or _in_mesh(row, netns)
            )
            if row.sandbox != given:
                raise CniError(Code.TRY_AGAIN, f"another sandbox of pod {pod} has taken over")
        if row.gone:
            raise _over(str(pod))
        return row.decision.reason

    def _hand_over(self, pod: PodName, sandbox: Sandbox, row: Workload[N]) -> None:
        if not sandbox.addresses:
            raise CniError(
                Code.INVALID_CONFIGURATION,
                f"no plugin of network {sandbox.network} has given pod {pod} an address",
                "the mesh's entry has to stand behind the plugin that does",
            )
        if not _holds_another_interface(row, sandbox):
            self._table.handed_over(row, sandbox)

    async def _row(self, pod: PodName, sandbox: Sandbox, waiting: _Waiting) -> Workload[N]:
        waiting.why = lambda: "the agent has not heard of the pod"
        if self._lookup is None:
            find = partial(self.known, pod) if pod.uid else partial(self._free, pod, sandbox)
            return await self._table.until(find)
        if pod.uid is None:
            pod = await _asked(partial(self._identified, self._lookup, pod), waiting)
        return await _heard_or_asked(
            lambda: self._table.until(partial(self.known, pod)),
            partial(self._ask, self._lookup, pod),
            waiting,
        )

    async def _identified(self, lookup: PodLookup, pod: PodName) -> PodName:
        """Ask whose name it is: kubelet starts the pod that has it in the API now (L38).

        Not one of the rows: that of a predecessor may look like a pod that starts, until
        the watch tells of its end.
        """
        found = await lookup(pod.namespace, pod.name)
        if found is None:
            raise _nobody(pod)
        if _is_ending(found):
            raise RetryError(
                f"the pod of this name that the API server has is ending (UID {found.uid}); "
                "its successor is waited for"
            )
        self._adopt(found)
        return replace(pod, uid=found.sandbox_uid)

    async def _ask(self, lookup: PodLookup, pod: PodName) -> None:
        found = await lookup(pod.namespace, pod.name)
        if self.known(pod) is not None:
            return  # heard of meanwhile; the answer may be older
        if found is None:
            raise _nobody(pod)
        if found.sandbox_uid != pod.uid:
            raise CniError(
                Code.TRY_AGAIN,
                f"pod {pod} was replaced",
                f"the runtime starts UID {pod.uid}, the API server has {found.sandbox_uid}",
            )
        self._adopt(found)

    def _adopt(self, found: Pod) -> None:
        row = self._table.get(found.uid)
        if row is None:
            self._table.pod_seen(found)
        elif row.gone:
            # The watch has told of the pod's end; the answer is older than that.
            raise _over(str(found))

    def _free(self, pod: PodName, sandbox: Sandbox) -> Workload[N] | None:
        """Without an API to ask: a row that neither ends nor has another sandbox already."""
        return next(
            (
                row
                for row in self._named(pod)
                if not _is_ending(row.seen)
                and (row.sandbox is None or not self._lives_beside(row.sandbox, sandbox))
            ),
            None,
        )

    def _lives_beside(self, held: Sandbox, sandbox: Sandbox) -> bool:
        try:
            return self.identify(held.netns) != self.identify(sandbox.netns)
        except OSError:
            return False

    async def _decided(self, row: Workload[N], waiting: _Waiting) -> None:
        waiting.why = lambda: row.decision.reason
        await _heard_or_asked(
            lambda: row.until(_is_decided),
            partial(self._ask_namespace, self._lookup_namespace, row)
            if self._lookup_namespace
            else None,
            waiting,
        )

    async def _ask_namespace(self, lookup: NamespaceLookup, row: Workload[N]) -> None:
        name = row.seen.namespace
        found = await lookup(name)
        if _is_decided(row):
            return
        if found is None:
            raise CniError(Code.TRY_AGAIN, f"the API server knows of no namespace {name}")
        self._table.namespace_seen(found)

    def _list_missing(self) -> str:
        return "; ".join(self._missing()) or "the first lists"


async def _heard_or_asked(
    heard: Callable[[], Awaitable[T]],
    ask: Callable[[], Awaitable[None]] | None,
    waiting: _Waiting,
) -> T:
    """Wait for the watch for a moment; then ask as well, until one of the two knows."""
    if ask is None:
        return await heard()
    backoff = Backoff()
    lag = CACHE_LAG
    while True:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(lag):
                return await heard()
        try:
            async with asyncio.timeout(_ASK_TIMEOUT):
                await ask()
        except (RetryError, TimeoutError) as error:
            waiting.unanswered(error)
            lag = max(CACHE_LAG, backoff.delay())


async def _asked(ask: Callable[[], Awaitable[T]], waiting: _Waiting) -> T:
    """Ask until there is an answer."""
    backoff = Backoff()
    while True:
        try:
            async with asyncio.timeout(_ASK_TIMEOUT):
                return await ask()
        except (RetryError, TimeoutError) as error:
            waiting.unanswered(error)
        await asyncio.sleep(max(CACHE_LAG, backoff.delay()))


def _no_answer() -> str:
    return f"the API server has not answered within {_ASK_TIMEOUT:g} s"


def _nobody(pod: PodName) -> CniError:
    return CniError(Code.TRY_AGAIN, f"the API server knows of no pod {pod} on this node")


def _over(pod: str) -> CniError:
    return CniError(Code.TRY_AGAIN, f"pod {pod} does not exist any more")


def _is_ending(pod: Pod) -> bool:
    """Whether no sandbox is started for it any more."""
    return pod.deleting or pod.ended


def _is_decided(row: Workload[N]) -> bool:
    return row.gone or row.decision.wanted is not Wanted.UNKNOWN


def _is_over(row: Workload[N]) -> bool:
    return row.gone or row.decision.wanted is Wanted.NO


def _in_mesh(row: Workload[N], netns: Hashable) -> bool:
    return (
        row.accepted
        and row.redirected is not None
        and row.namespace is not None
        and row.namespace.id == netns
    )


def _holds_another_interface(row: Workload[N], sandbox: Sandbox) -> bool:
    """Whether it is a second network of the sandbox that is held: it is redirected already."""
    held = row.sandbox
    return (
        held is not None
        and held.netns == sandbox.netns
        and held.container_id == sandbox.container_id
        and (held.network, held.interface) != (sandbox.network, sandbox.interface)
    )
