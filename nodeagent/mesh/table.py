"""The table of workloads: every pod that was seen, with the decision for it.

News of pods, of Kubernetes namespaces and of sandboxes may come in any order, and repeated.
The table writes them into its workloads, decides anew, and calls back for each workload
for which something may have to be done. It does nothing else for a pod.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Generic, Protocol

from nodeagent.mesh.annotation import PodAnnotation
from nodeagent.mesh.eligibility import Policy, Wanted, decide, evidence
from nodeagent.mesh.held import N
from nodeagent.mesh.history import History
from nodeagent.mesh.pod import Namespace, Pod, PodUID
from nodeagent.mesh.progress import Progress
from nodeagent.mesh.sandbox import Sandbox
from nodeagent.mesh.workload import Workload


class Listener(Protocol[N]):
    """Who acts on what the table learns of a pod."""

    def changed(self, workload: Workload[N]) -> None:
        """Something that is wanted or known of the pod is new."""

    def drifted(self, workload: Workload[N]) -> None:
        """Somebody has changed something in the pod's netns."""


class Table(Generic[N]):
    """The workloads by UID, and the labels of the Kubernetes namespaces.

    The only writer of what the pod source and the container runtime say of a workload. All
    news of pods come through here, so the table is made before whatever has news.
    """

    def __init__(self, policy: Policy) -> None:
        """Before the first news, somebody has to `listen`."""
        self._policy = policy
        self._listener: Listener[N] | None = None
        self._workloads: dict[PodUID, Workload[N]] = {}
        self._namespaces: dict[str, Namespace] = {}
        self.history = History()
        """The last transitions of every pod, and of those that have ended last."""
        self._synced = asyncio.Event()
        self._pod_seen = asyncio.Event()

    def __iter__(self) -> Iterator[Workload[N]]:
        return iter(list(self._workloads.values()))

    def __len__(self) -> int:
        return len(self._workloads)

    def get(self, uid: PodUID) -> Workload[N] | None:
        """The workload of `uid`, if there is one."""
        return self._workloads.get(uid)

    def listen(self, listener: Listener[N]) -> None:
        """Call `listener` for each workload for which something may have to be done."""
        self._listener = listener

    def wake(self, uid: PodUID) -> None:
        """There is news of the pod elsewhere, if it is in the table: ztunnel has answered, say."""
        if (workload := self._workloads.get(uid)) is not None:
            self._changed(workload)

    def drifted(self, uid: PodUID) -> None:
        """Somebody has changed something in the pod's netns, if the pod is in the table."""
        if self._listener is not None and (workload := self._workloads.get(uid)) is not None:
            self._listener.drifted(workload)

    def kept(self) -> list[PodUID]:
        """The pods that every ztunnel's snapshot has to name (L31)."""
        return [workload.uid for workload in self._workloads.values() if workload.kept]

    def pod_seen(self, pod: Pod) -> None:
        """A pod exists and looks like this now."""
        decision = decide(pod, self._namespaces.get(pod.namespace), self._policy)
        workload = self._workloads.get(pod.uid)
        if workload is None:
            workload = Workload[N](
                seen=pod,
                decision=decision,
                existing=not self._synced.is_set(),
                ran_unprotected=decision.wanted is Wanted.YES and pod.phase == "Running",
                annotation=PodAnnotation(pod),
                progress=Progress(self.history.begin(pod)),
            )
            self._workloads[pod.uid] = workload
        elif (workload.seen, workload.decision, workload.gone) == (pod, decision, False):
            return
        else:
            workload.annotation.seen(pod, anew=workload.gone)
            workload.seen, workload.decision, workload.gone = pod, decision, False
            workload.heard = time.monotonic()
        self._pod_seen.set()
        self._pod_seen = asyncio.Event()
        self._changed(workload)

    def pod_gone(self, uid: PodUID) -> None:
        """The pod with this UID does not exist any more."""
        workload = self._workloads.get(uid)
        if workload is not None and not workload.gone:
            workload.gone = True
            workload.progress.history.note("gone", "the pod no longer exists")
            self._changed(workload)

    def handed_over(self, workload: Workload[N], sandbox: Sandbox) -> None:
        """The runtime has made `sandbox` for the pod; the one before, if any, is over."""
        workload.sandbox, workload.sandbox_ended = sandbox, None
        workload.heard = time.monotonic()
        self._changed(workload)

    def sandbox_ended(self, workload: Workload[N]) -> None:
        """The runtime takes the sandbox of `workload` down."""
        workload.sandbox, workload.sandbox_ended = None, asyncio.get_running_loop().time()
        self._changed(workload)

    def expect_sandbox(self, workload: Workload[N]) -> None:
        """The end of the last sandbox is over: the next one may be there, unheard of."""
        workload.sandbox_ended = None

    def named(self, namespace: str, name: str) -> Iterator[Workload[N]]:
        """The workloads of existing pods with this name, the one that was seen first last.

        Kubernetes gives a name again as soon as its pod is gone, and the news of that may be
        late. So there can be several, and the name does not say which one is meant (L38).
        """
        return (
            workload
            for workload in reversed(list(self._workloads.values()))
            if not workload.gone
            and (workload.seen.namespace, workload.seen.name) == (namespace, name)
        )

    async def until(self, find: Callable[[], Workload[N] | None]) -> Workload[N]:
        """Return the workload that `find` finds; it is asked again after each news of a pod."""
        while (workload := find()) is None:
            await self._pod_seen.wait()
        return workload

    def namespace_seen(self, namespace: Namespace) -> None:
        """A namespace exists and is labeled like this now."""
        if self._namespaces.get(namespace.name) != namespace:
            self._namespaces[namespace.name] = namespace
            self._decide_again(namespace.name)

    def namespace_gone(self, name: str) -> None:
        """The namespace is not known any more."""
        self._namespaces.pop(name, None)
        self._decide_again(name)

    def synced(self) -> None:
        """All that existed at the start has been seen: what comes now is new."""
        self._synced.set()

    async def until_synced(self) -> None:
        """Return once all that existed at the start has been seen."""
        await self._synced.wait()

    def evidence(self, workload: Workload[N]) -> tuple[str, ...]:
        """How the pod fits each enablement selector, in words."""
        pod = workload.seen
        return evidence(pod, self._namespaces.get(pod.namespace), self._policy)

    def release(self) -> None:
        """From now on no pod is wanted: the agent goes for good."""
        self._policy = replace(self._policy, released=True)
        for namespace in {workload.seen.namespace for workload in self._workloads.values()}:
            self._decide_again(namespace)

    def forget(self, workload: Workload[N]) -> None:
        """Drop the workload of a pod that is gone and for which nothing is left to do."""
        if self._workloads.get(workload.uid) is workload:
            del self._workloads[workload.uid]
            self.history.end(workload.uid)

    def _decide_again(self, namespace: str) -> None:
        for workload in self._workloads.values():
            if workload.seen.namespace != namespace or workload.gone:
                continue
            decision = decide(workload.seen, self._namespaces.get(namespace), self._policy)
            if decision != workload.decision:
                workload.decision = decision
                workload.heard = time.monotonic()
                self._changed(workload)

    def _changed(self, workload: Workload[N]) -> None:
        if self._listener is not None:
            self._listener.changed(workload)
