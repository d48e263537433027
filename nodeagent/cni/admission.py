"""Whether a pod's sandbox may go on: only in the mesh, or where the pod is not wanted there.

ADD and CHECK ask the same three questions, in this order. Does nobody need to be asked, because
of the pod's name or Kubernetes namespace alone (`settled`)? Does the table's decision, the one
that the watch's pods are enrolled by, want the pod in the mesh? Is the pod in the mesh? ADD
waits for the answers, and hands the sandbox over between the last two; CHECK takes what is
known now.
"""

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Generic

from nodeagent.cni.attachments import Adding
from nodeagent.cni.errors import CniError, Code
from nodeagent.cni.let_through import LetThrough
from nodeagent.cni.pod_finder import Identify, NamespaceLookup, PodFinder, PodLookup, gone
from nodeagent.cni.request import PodName
from nodeagent.cni.waiting import Waiting
from nodeagent.mesh.eligibility import Policy, Wanted, decide_by_namespace
from nodeagent.mesh.errors import RetryError
from nodeagent.mesh.held import N
from nodeagent.mesh.pod import Pod
from nodeagent.mesh.sandbox import Sandbox
from nodeagent.mesh.table import Table
from nodeagent.mesh.workload import Workload

ADD_DEADLINE = 30.0
"""Seconds; the binary waits for 35, kubelet for two minutes."""
EXCUSED_PATIENCE = 3.0
"""Seconds for which a pod that starts without a decision waits for one."""

Missing = Callable[[], Sequence[str]]
"""What keeps the agent from being ready, in words; empty when it is ready."""
Inspect = Callable[[N, Pod], Awaitable[tuple[str, ...]]]
"""Returns what differs in a pod's netns from what should be installed; as
`mesh.dependencies.Redirector` has it. Raises ``RetryError``."""


class Admission(Generic[N]):
    """Decides about sandboxes with the table's one decision for their pod (L26)."""

    def __init__(
        self,
        table: Table[N],
        policy: Policy,
        *,
        let_through: LetThrough,
        identify: Identify,
        inspect: Inspect[N],
        missing: Missing,
        lookup: PodLookup | None,
        lookup_namespace: NamespaceLookup | None,
        deadline: float = ADD_DEADLINE,
    ) -> None:
        """`deadline` is that of an ADD, in seconds; the lookups are as for `PodFinder`."""
        self._table = table
        self._policy = policy
        self._let_through = let_through
        self._inspect = inspect
        self._missing = missing
        self._deadline = deadline
        self._finder = PodFinder(
            table,
            identify=identify,
            lookup=lookup,
            lookup_namespace=lookup_namespace,
            agent_pods=let_through.agent.command,
        )

    def settled(self, pod: PodName) -> str | None:
        """Say why nobody needs to be asked about `pod`; None: somebody does."""
        if (pod.namespace, pod.name) in self._let_through.agent:
            return "a pod of the agent"
        decision = decide_by_namespace(pod.namespace, self._policy)
        return decision.reason if decision else None

    async def admit(self, pod: PodName, sandbox: Sandbox, adding: Adding) -> str:
        """Answer an ADD: return once the sandbox may go on, with the reason.

        Raises ``CniError``.
        """
        if (reason := self.settled(pod)) is not None:
            return reason
        waiting = Waiting(
            lambda: f"the agent is starting: waits for {self._list_missing()}",
            f"the log of the agent's pod on this node ({self._let_through.agent.command})",
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

    async def check(self, pod: PodName, netns: str) -> None:
        """Answer a CHECK of the sandbox with the netns at path `netns`.

        Raises ``CniError`` where the pod is wanted in the mesh and not whole there, or where
        that cannot be told.
        """
        if self.settled(pod) is not None:
            return
        workload = self._finder.holder(pod, netns)
        if workload is None or workload.decision.wanted is Wanted.UNKNOWN:
            if self._excuse(pod) is not None:
                return
            why = workload.decision.reason if workload else "the agent has not heard of it"
            raise CniError(Code.TRY_AGAIN, f"it is not known whether pod {pod} is in the mesh", why)
        if workload.decision.wanted is Wanted.NO:
            return
        held = workload.netns
        if held is None or held.id != self._finder.netns_id(netns):
            raise CniError(Code.DIFFERS, f"pod {pod} is not in the mesh", _progress(workload))
        try:
            differences = await self._inspect(held, workload.pod)
        except RetryError as error:
            raise CniError(Code.TRY_AGAIN, f"cannot look at pod {pod}", str(error)) from error
        if differences:
            raise CniError(
                Code.DIFFERS, f"the redirection of pod {pod} differs", "; ".join(differences)
            )

    async def _admit(self, pod: PodName, sandbox: Sandbox, adding: Adding, waiting: Waiting) -> str:
        excuse = self._excuse(pod)
        try:
            async with asyncio.timeout(EXCUSED_PATIENCE if excuse else None):
                await self._table.until_synced()
                workload = await self._finder.starting(pod, sandbox, waiting)
                await self._finder.decided(workload, waiting)
        except TimeoutError:
            if excuse is None:
                raise
            return excuse
        if not _needs_no_mesh(workload):
            adding.check()
            await self._enrolled(pod, sandbox, workload, waiting)
        if workload.gone:
            raise gone(str(pod))
        return workload.decision.reason

    async def _enrolled(
        self, pod: PodName, sandbox: Sandbox, workload: Workload[N], waiting: Waiting
    ) -> None:
        """Hand the sandbox over; wait until it is in the mesh, or need not be any more."""
        netns = self._finder.netns_id(sandbox.netns)
        self._hand_over(pod, sandbox, workload)
        ours = workload.sandbox
        waiting.why = lambda: _progress(workload)
        waiting.look_at = (
            f"ztunnel's pod on this node ({self._let_through.ztunnel.command}), and at "
            f"`nodeagent status` in the agent's ({self._let_through.agent.command})"
        )
        await workload.until(
            lambda now: _needs_no_mesh(now) or now.sandbox != ours or _in_mesh(now, netns)
        )
        if workload.sandbox != ours:
            raise CniError(
                Code.TRY_AGAIN,
                f"another sandbox of pod {pod} has taken over",
                "the runtime has begun a newer one, which goes on: nothing needs to be done",
            )

    def _hand_over(self, pod: PodName, sandbox: Sandbox, workload: Workload[N]) -> None:
        if not sandbox.addresses:
            raise CniError(
                Code.INVALID_CONFIGURATION,
                f"no plugin of network {sandbox.network} has given pod {pod} an address",
                "the mesh's entry has to stand behind the plugin that does: look at the order of "
                "`plugins` in the node's CNI configuration (CNI_NET_DIR)",
            )
        if not _is_second_interface(sandbox, workload.sandbox):
            self._table.handed_over(workload, sandbox)

    def _excuse(self, pod: PodName) -> str | None:
        """Say why `pod` goes on where nobody can decide about it; None: it is held."""
        return self._let_through.undecided(pod.namespace, pod.name)

    def _list_missing(self) -> str:
        return "; ".join(self._missing()) or "the first lists"


def _needs_no_mesh(workload: Workload[N]) -> bool:
    return workload.gone or workload.decision.wanted is Wanted.NO


def _in_mesh(workload: Workload[N], netns: Hashable) -> bool:
    held = workload.held
    return (
        held is not None
        and held.accepted
        and held.installed_for is not None
        and held.netns.id == netns
    )


def _progress(workload: Workload[N]) -> str:
    return f"{workload.state.value}: {workload.detail}"


def _is_second_interface(sandbox: Sandbox, held: Sandbox | None) -> bool:
    """Whether `sandbox` is the one that is held, in a further network: it is redirected already."""
    return (
        held is not None
        and held.netns == sandbox.netns
        and held.container_id == sandbox.container_id
        and (held.network, held.interface) != (sandbox.network, sandbox.interface)
    )
