"""The table of workloads: every pod that was seen, with the decision for it."""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Generic

from nodeagent.mesh.eligibility import Policy, Wanted, decide
from nodeagent.mesh.pod import Namespace, Pod, PodUID
from nodeagent.mesh.sandbox import Sandbox
from nodeagent.mesh.workload import N, Redirection, Workload, reported_on


class Table(Generic[N]):
    """Takes news of pods and namespaces, in any order and repeated, and keeps the rows true.

    `changed` is called for each row for which something may have to be done.
    """

    def __init__(self, policy: Policy, changed: Callable[[Workload[N]], None]) -> None:
        self._policy = policy
        self._changed = changed
        self._rows: dict[PodUID, Workload[N]] = {}
        self._namespaces: dict[str, Namespace] = {}
        self._synced = asyncio.Event()
        self._seen = asyncio.Event()

    def __iter__(self) -> Iterator[Workload[N]]:
        return iter(list(self._rows.values()))

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, uid: PodUID) -> Workload[N] | None:
        """The row of `uid`, if there is one."""
        return self._rows.get(uid)

    def kept(self) -> list[PodUID]:
        """The pods that every ztunnel's snapshot has to name (L31)."""
        return [row.uid for row in self._rows.values() if row.kept]

    def pod_seen(self, pod: Pod) -> None:
        """A pod exists and looks like this now."""
        decision = decide(pod, self._namespaces.get(pod.namespace), self._policy)
        row = self._rows.get(pod.uid)
        if row is None:
            row = Workload[N](
                seen=pod,
                decision=decision,
                existing=not self._synced.is_set(),
                slipped_by=decision.wanted is Wanted.YES and pod.phase == "Running",
                reported=(reported := reported_on(pod)),
                was_annotated=reported is not None,
                promised=reported is Redirection.ENABLED,
            )
            self._rows[pod.uid] = row
        elif (row.seen, row.decision, row.gone) == (pod, decision, False):
            return
        else:
            reported = reported_on(pod)
            # What was on its way for a pod that was gone has been dropped.
            if row.gone or reported is not reported_on(row.seen):
                row.reported = reported
            row.seen, row.decision, row.gone = pod, decision, False
        self._seen.set()
        self._seen = asyncio.Event()
        self._changed(row)

    def pod_gone(self, uid: PodUID) -> None:
        """The pod with this UID does not exist any more."""
        row = self._rows.get(uid)
        if row is not None and not row.gone:
            row.gone = True
            self._changed(row)

    def handed_over(self, row: Workload[N], sandbox: Sandbox) -> None:
        """The runtime has made `sandbox` for the pod of `row`; an earlier one is over (L14)."""
        row.sandbox, row.sandbox_ended = sandbox, None
        self._changed(row)

    def sandbox_ended(self, row: Workload[N]) -> None:
        """The runtime takes the sandbox of `row` down."""
        row.sandbox, row.sandbox_ended = None, asyncio.get_running_loop().time()
        self._changed(row)

    def named(self, namespace: str, name: str) -> Iterator[Workload[N]]:
        """The rows of existing pods with this name, the one that was seen first last.

        Kubernetes gives a name again as soon as its pod is gone, and the news of that
        may be late: which of them somebody means, the name does not say (L38).
        """
        return (
            row
            for row in reversed(list(self._rows.values()))
            if not row.gone and (row.seen.namespace, row.seen.name) == (namespace, name)
        )

    async def until(self, find: Callable[[], Workload[N] | None]) -> Workload[N]:
        """Return the row that `find` finds; it is asked again after each news of a pod."""
        while (row := find()) is None:
            await self._seen.wait()
        return row

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

    def release(self) -> None:
        """From now on no pod is wanted: the agent goes for good."""
        self._policy = replace(self._policy, released=True)
        for namespace in {row.seen.namespace for row in self._rows.values()}:
            self._decide_again(namespace)

    def forget(self, row: Workload[N]) -> None:
        """Drop the row of a pod that is gone and for which nothing is left to do."""
        if self._rows.get(row.uid) is row:
            del self._rows[row.uid]

    def _decide_again(self, namespace: str) -> None:
        for row in self._rows.values():
            if row.seen.namespace != namespace or row.gone:
                continue
            decision = decide(row.seen, self._namespaces.get(namespace), self._policy)
            if decision != row.decision:
                row.decision = decision
                self._changed(row)
