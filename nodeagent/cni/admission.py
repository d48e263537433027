"""Whether a new sandbox may go on: only in the mesh, or where its pod is not meant to be."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Generic

from nodeagent.cni.attachments import Adding
from nodeagent.cni.errors import CniError, Code
from nodeagent.cni.let_through import LetThrough
from nodeagent.cni.request import PodName
from nodeagent.cni.waiting import Waiting, answered, heard_or_asked
from nodeagent.mesh.eligibility import Policy, Wanted, decide_by_namespace
from nodeagent.mesh.errors import RetryError
from nodeagent.mesh.held import N
from nodeagent.mesh.pod import CONFIG_MIRROR, Namespace, Pod, PodUID
from nodeagent.mesh.sandbox import Sandbox
from nodeagent.mesh.table import Table
from nodeagent.mesh.workload import Workload

ADD_DEADLINE = 30.0
"""Seconds; the binary waits for 35, kubelet for two minutes."""
EXCUSED_PATIENCE = 3.0
"""Seconds for which a pod that starts without a decision waits for one."""

PodLookup = Callable[[str, str], Awaitable[Pod | None]]
"""Asks the API server for a pod of this node, by namespace and name. None: there is none.

Raises ``RetryError`` where it cannot say.
"""
NamespaceLookup = Callable[[str], Awaitable[Namespace | None]]
"""Likewise for a Kubernetes namespace."""
Identify = Callable[[str], Hashable]
"""Returns the ``id`` of the network namespace at a path of the host. Raises ``OSError``."""
Missing = Callable[[], Sequence[str]]
"""What keeps the agent from being ready, in words; empty when it is."""


class Admission(Generic[N]):
    """Decides about sandboxes with the table's one decision for their pod (L26)."""

    def __init__(
        self,
        table: Table[N],
        policy: Policy,
        *,
        let_through: LetThrough,
        identify: Identify,
        missing: Missing,
        lookup: PodLookup | None,
        lookup_namespace: NamespaceLookup | None,
        deadline: float = ADD_DEADLINE,
    ) -> None:
        """No lookups: the table alone knows of pods, as from a folder of manifests."""
        self._table = table
        self._policy = policy
        self._let_through = let_through
        self.identify = identify
        self._missing = missing
        self._lookup = lookup
        self._lookup_namespace = lookup_namespace
        self._deadline = deadline

    def let_through(self, pod: PodName) -> str | None:
        """Say why nobody needs to be asked about `pod`; None: somebody does."""
        if (pod.namespace, pod.name) in self._let_through.agent:
            return "a pod of the agent"
        settled = decide_by_namespace(pod.namespace, self._policy)
        return settled.reason if settled else None

    def excuse(self, pod: PodName) -> str | None:
        """Say why `pod` goes on where nobody can decide about it; None: it is held."""
        return self._let_through.undecided(pod.namespace, pod.name)

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
        holding = (row for row in rows if row.netns and row.netns.id == identity)
        return next(holding, None) or next((row for row in rows if not _is_ending(row.seen)), None)

    def _named(self, pod: PodName) -> Iterator[Workload[N]]:
        return self._table.named(pod.namespace, pod.name)

    def identity_of(self, netns: str) -> Hashable:
        """Tell the namespace at `netns` from others. Raises ``CniError`` where it is gone."""
        try:
            return self.identify(netns)
        except OSError as error:
            raise CniError(
                Code.TRY_AGAIN,
                f"the sandbox's network namespace {netns} is not there",
                f"{error.strerror or error}; the runtime has taken it down meanwhile, or the "
                "agent does not see the host's files (look at HOST_PREFIX and the mounts of its "
                f"pod: {self._agents_pods})",
            ) from error

    async def admit(self, pod: PodName, sandbox: Sandbox, adding: Adding) -> str:
        """Return once the sandbox may go on, with the reason. Raises ``CniError``."""
        if (reason := self.let_through(pod)) is not None:
            return reason
        waiting = Waiting(
            lambda: f"the agent is starting: waits for {self._list_missing()}",
            f"the log of the agent's pod on this node ({self._agents_pods})",
        )
        try:
            async with asyncio.timeout(self._deadline):
                return await self._admit(pod, sandbox, adding, waiting)
        except TimeoutError as error:
            raise CniError(
                Code.TRY_AGAIN,
                f"pod {pod} is held back, not known to be in the mesh after {self._deadline:g} s",
                f"{waiting.why()}; look at {waiting.look_at}",
            ) from error

    async def _admit(self, pod: PodName, sandbox: Sandbox, adding: Adding, waiting: Waiting) -> str:
        excuse = self.excuse(pod)
        try:
            async with asyncio.timeout(EXCUSED_PATIENCE if excuse else None):
                await self._table.until_synced()
                row = await self._row(pod, sandbox, waiting)
                await self._decided(row, waiting)
        except TimeoutError:
            if excuse is None:
                raise
            return excuse
        if not _is_over(row):
            adding.check()
            netns = self.identity_of(sandbox.netns)
            self._hand_over(pod, sandbox, row)
            given = row.sandbox
            waiting.why = lambda: f"{row.state.value}: {row.detail}"
            waiting.look_at = (
                f"ztunnel's pod on this node (kubectl get pods -o wide "
                f"-n {self._let_through.ztunnel.namespace}), and at `nodeagent status` in the "
                f"agent's ({self._agents_pods})"
            )
            await row.until(
                lambda row: _is_over(row) or row.sandbox != given or _in_mesh(row, netns)
            )
            if row.sandbox != given:
                raise CniError(
                    Code.TRY_AGAIN,
                    f"another sandbox of pod {pod} has taken over",
                    "the runtime has begun a newer one, which goes on: nothing needs to be done",
                )
        if row.gone:
            raise _over(str(pod))
        return row.decision.reason

    def _hand_over(self, pod: PodName, sandbox: Sandbox, row: Workload[N]) -> None:
        if not sandbox.addresses:
            raise CniError(
                Code.INVALID_CONFIGURATION,
                f"no plugin of network {sandbox.network} has given pod {pod} an address",
                "the mesh's entry has to stand behind the plugin that does: look at the order of "
                "`plugins` in the node's CNI configuration (CNI_NET_DIR)",
            )
        if not _holds_another_interface(row, sandbox):
            self._table.handed_over(row, sandbox)

    async def _row(self, pod: PodName, sandbox: Sandbox, waiting: Waiting) -> Workload[N]:
        waiting.why = lambda: "the agent has not heard of the pod"
        waiting.look_at = (
            "whether this node reaches the API server, and at the agent's log "
            f"({self._agents_pods})"
        )
        if self._lookup is None:
            find = partial(self.known, pod) if pod.uid else partial(self._free, pod, sandbox)
            return await self._table.until(find)
        if pod.uid is None:
            pod = await answered(partial(self._identified, self._lookup, pod), waiting)
        return await heard_or_asked(
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
        if found.sandbox_uid != pod.uid and CONFIG_MIRROR in found.annotations:
            raise RetryError(
                f"static pod {pod} starts with manifest {pod.uid}, its mirror in the API has "
                f"{found.sandbox_uid}; kubelet's new mirror is waited for"
            )
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

    async def _decided(self, row: Workload[N], waiting: Waiting) -> None:
        waiting.why = lambda: row.decision.reason
        await heard_or_asked(
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
            raise CniError(
                Code.TRY_AGAIN,
                f"the API server knows of no namespace {name}",
                f"it was deleted, and its pods go with it (kubectl get namespace {name})",
            )
        self._table.namespace_seen(found)

    @property
    def _agents_pods(self) -> str:
        return f"kubectl get pods -o wide -n {self._let_through.agent.namespace}"

    def _list_missing(self) -> str:
        return "; ".join(self._missing()) or "the first lists"


def _nobody(pod: PodName) -> CniError:
    return CniError(
        Code.TRY_AGAIN,
        f"the API server knows of no pod {pod} on this node",
        "it was deleted or is another node's "
        f"(kubectl get pod -o wide -n {pod.namespace} {pod.name})",
    )


def _over(pod: str) -> CniError:
    return CniError(
        Code.TRY_AGAIN,
        f"pod {pod} does not exist any more",
        "kubelet takes its sandbox down by itself, and starts what has replaced it",
    )


def _is_ending(pod: Pod) -> bool:
    """Whether no sandbox is started for it any more."""
    return pod.deleting or pod.ended


def _is_decided(row: Workload[N]) -> bool:
    return row.gone or row.decision.wanted is not Wanted.UNKNOWN


def _is_over(row: Workload[N]) -> bool:
    return row.gone or row.decision.wanted is Wanted.NO


def _in_mesh(row: Workload[N], netns: Hashable) -> bool:
    held = row.held
    return (
        held is not None
        and held.accepted
        and held.installed_for is not None
        and held.netns.id == netns
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
