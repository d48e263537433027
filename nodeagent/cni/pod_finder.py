"""Which workload a request of the runtime is about, and what the mesh wants of that workload.

The table has what the watch has told; a request may come before that. So a `PodFinder` waits
for the watch, and when that takes too long asks the API server as well. A pod is told by its
UID. Where the runtime does not send the UID, the API server says who has the name now, because
a name passes on to the next pod as soon as the last one is gone.
"""

from collections.abc import Awaitable, Callable, Hashable, Iterator
from dataclasses import replace
from functools import partial
from typing import Generic

from nodeagent.cni.errors import CniError, Code
from nodeagent.cni.request import PodName
from nodeagent.cni.waiting import Waiting, answered, heard_or_asked
from nodeagent.mesh.eligibility import Wanted
from nodeagent.mesh.errors import RetryError
from nodeagent.mesh.held import N
from nodeagent.mesh.pod import CONFIG_MIRROR, Namespace, Pod, PodUID
from nodeagent.mesh.sandbox import Sandbox
from nodeagent.mesh.table import Table
from nodeagent.mesh.workload import Workload

PodLookup = Callable[[str, str], Awaitable[Pod | None]]
"""Asks the API server for a pod of this node, by namespace and name. None: there is none.

Raises ``RetryError`` where the API server cannot say.
"""
NamespaceLookup = Callable[[str], Awaitable[Namespace | None]]
"""Asks the API server for a Kubernetes namespace, in the same way."""
Identify = Callable[[str], Hashable]
"""Returns the ``id`` of the netns at a path of the host. Raises ``OSError``."""


class PodFinder(Generic[N]):
    """Finds the workload of a pod in the table, or adds what the API server says of the pod."""

    def __init__(
        self,
        table: Table[N],
        *,
        identify: Identify,
        lookup: PodLookup | None,
        lookup_namespace: NamespaceLookup | None,
        agent_pods: str,
    ) -> None:
        """No lookups: the table alone knows of pods, as from a folder of manifests.

        `agent_pods` is the command that shows the agent's pods, for messages.
        """
        self._table = table
        self._identify = identify
        self._lookup = lookup
        self._lookup_namespace = lookup_namespace
        self._agent_pods = agent_pods

    def known(self, pod: PodName) -> Workload[N] | None:
        """Return the workload of the pod with this UID; None where no UID was sent (L38)."""
        if pod.uid is None:
            return None
        workload = self._table.get(PodUID(pod.uid)) or next(
            # A static pod's workload has the UID of the pod's mirror in the API.
            (each for each in self._named(pod) if each.seen.sandbox_uid == pod.uid),
            None,
        )
        if workload is None or workload.gone or workload.seen.sandbox_uid != pod.uid:
            return None
        return workload

    def holder(self, pod: PodName, netns: str) -> Workload[N] | None:
        """Return the workload of the pod whose sandbox has the netns at path `netns`.

        Raises ``CniError`` where that has to be looked at and is gone.
        """
        if pod.uid is not None:
            return self.known(pod)
        named = list(self._named(pod))
        identity = self.netns_id(netns)
        holding = (each for each in named if each.netns and each.netns.id == identity)
        living = (each for each in named if not _is_ending(each.seen))
        return next(holding, None) or next(living, None)

    def netns_id(self, netns: str) -> Hashable:
        """Return the identity of the netns at a path. Raises ``CniError`` where it is gone."""
        try:
            return self._identify(netns)
        except OSError as error:
            raise CniError(
                Code.TRY_AGAIN,
                f"the sandbox's network namespace {netns} is not there",
                f"{error.strerror or error}; the runtime has taken it down meanwhile, or the "
                "agent does not see the host's files (look at HOST_PREFIX and the mounts of its "
                f"pod: {self._agent_pods})",
            ) from error

    async def starting(self, pod: PodName, sandbox: Sandbox, waiting: Waiting) -> Workload[N]:
        """Wait for the workload of the pod that `sandbox` was made for. Raises ``CniError``."""
        waiting.why = lambda: "the agent has not heard of the pod"
        waiting.look_at = (
            f"whether this node reaches the API server, and at the agent's log ({self._agent_pods})"
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

    async def decided(self, workload: Workload[N], waiting: Waiting) -> None:
        """Wait until it is known whether the pod is wanted in the mesh, or the pod is gone.

        Raises ``CniError``.
        """
        waiting.why = lambda: workload.decision.reason
        await heard_or_asked(
            lambda: workload.until(_is_decided),
            partial(self._ask_namespace, self._lookup_namespace, workload)
            if self._lookup_namespace
            else None,
            waiting,
        )

    def _named(self, pod: PodName) -> Iterator[Workload[N]]:
        return self._table.named(pod.namespace, pod.name)

    async def _identified(self, lookup: PodLookup, pod: PodName) -> PodName:
        """Ask who has the name: kubelet starts the pod that has it in the API now (L38).

        The table is not asked: in it a predecessor of the same name may look like a pod that
        starts, until the watch tells of the predecessor's end.
        """
        found = await lookup(pod.namespace, pod.name)
        if found is None:
            raise _unknown(pod)
        if _is_ending(found):
            raise RetryError(
                f"the pod of this name that the API server has is ending (UID {found.uid}); "
                "its successor is waited for"
            )
        self._add(found)
        return replace(pod, uid=found.sandbox_uid)

    async def _ask(self, lookup: PodLookup, pod: PodName) -> None:
        found = await lookup(pod.namespace, pod.name)
        if self.known(pod) is not None:
            return  # the watch has told of the pod meanwhile; the answer may be older
        if found is None:
            raise _unknown(pod)
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
        self._add(found)

    def _add(self, found: Pod) -> None:
        workload = self._table.get(found.uid)
        if workload is None:
            self._table.pod_seen(found)
        elif workload.gone:
            # The watch has told of the pod's end; the answer is older than that.
            raise gone(str(found))

    def _free(self, pod: PodName, sandbox: Sandbox) -> Workload[N] | None:
        """Return a workload of this name that neither ends nor has another sandbox already.

        For a folder of manifests: there is no API server to ask who has the name.
        """
        return next(
            (
                each
                for each in self._named(pod)
                if not _is_ending(each.seen)
                and (each.sandbox is None or not self._is_other(each.sandbox, sandbox))
            ),
            None,
        )

    def _is_other(self, held: Sandbox, sandbox: Sandbox) -> bool:
        """Whether both exist, and have a netns each."""
        try:
            return self._identify(held.netns) != self._identify(sandbox.netns)
        except OSError:
            return False

    async def _ask_namespace(self, lookup: NamespaceLookup, workload: Workload[N]) -> None:
        name = workload.seen.namespace
        found = await lookup(name)
        if _is_decided(workload):
            return
        if found is None:
            raise CniError(
                Code.TRY_AGAIN,
                f"the API server knows of no namespace {name}",
                f"it was deleted, and its pods go with it (kubectl get namespace {name})",
            )
        self._table.namespace_seen(found)


def gone(pod: str) -> CniError:
    """The error of a request for a pod that has ended."""
    return CniError(
        Code.TRY_AGAIN,
        f"pod {pod} does not exist any more",
        "kubelet takes its sandbox down by itself, and starts what has replaced it",
    )


def _unknown(pod: PodName) -> CniError:
    return CniError(
        Code.TRY_AGAIN,
        f"the API server knows of no pod {pod} on this node",
        "it was deleted or is another node's "
        f"(kubectl get pod -o wide -n {pod.namespace} {pod.name})",
    )


def _is_ending(pod: Pod) -> bool:
    """Whether no sandbox is started for `pod` any more."""
    return pod.deleting or pod.ended


def _is_decided(workload: Workload[N]) -> bool:
    return workload.gone or workload.decision.wanted is not Wanted.UNKNOWN
