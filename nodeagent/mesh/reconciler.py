"""The heart's surface: the table of workloads, with one worker for each.

Whatever happens to a pod only wakes its worker. The worker reads what is wanted now, never
what has changed (level-triggered), so news may come late, twice, or in any order. Two runs
for one pod never overlap; runs for different pods do.
"""

import asyncio
import contextlib
from typing import Generic

from nodeagent.mesh.annotation import Redirection
from nodeagent.mesh.dependencies import Dependencies
from nodeagent.mesh.held import N
from nodeagent.mesh.pod import PodUID
from nodeagent.mesh.progress import State
from nodeagent.mesh.table import Table
from nodeagent.mesh.worker import Worker
from nodeagent.mesh.workload import Workload


class Reconciler(Generic[N]):
    """Has each pod's worker run whenever something about the pod may have changed."""

    def __init__(
        self,
        table: Table[N],
        dependencies: Dependencies[N],
        tasks: asyncio.TaskGroup,
        *,
        verify_interval: float,
    ) -> None:
        """Workers run in `tasks`; `verify_interval` is in seconds, see `Worker`."""
        self.table = table
        table.listen(self)
        self._dependencies = dependencies
        self._tasks = tasks
        self._verify_interval = verify_interval
        self._workers: dict[PodUID, Worker[N]] = {}

    async def until_all_attempted(self) -> None:
        """Wait until the steps of every pod that is in the table now have run once."""
        for workload in self.table:
            await workload.until(lambda workload: workload.progress.attempts > 0)

    async def release(self, seconds: float) -> list[Workload[N]]:
        """Take every pod out of the mesh in order, for good; return those that are not out.

        Where the API server has not taken within the time that a pod leaves, nothing has
        changed for that pod: peers that take it for enrolled go on being served.
        """
        promised = {each.uid for each in self.table if each.annotation.says_enabled}
        self.table.release()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                for workload in self.table:
                    await workload.until(_is_out)
        remain = [workload for workload in self.table if not _is_out(workload)]
        reporter = self._dependencies.reporter
        for workload in remain:
            if not reporter.delivered(workload.uid):
                enabled = workload.uid in promised
                before = Redirection.ENABLED if enabled else Redirection.PENDING
                reporter.report(workload.pod, before)
        return remain

    def drifted(self, workload: Workload[N]) -> None:
        """Have the worker run soon, and not too often."""
        if (worker := self._workers.get(workload.uid)) is None:
            return
        if delay := worker.drift_delay():
            asyncio.get_running_loop().call_later(delay, self.table.wake, workload.uid)
        else:
            self.changed(workload)

    def changed(self, workload: Workload[N]) -> None:
        """Have the worker run now."""
        if self.table.get(workload.uid) is not workload:
            return  # it was forgotten meanwhile
        worker = self._workers.get(workload.uid)
        if worker is None:
            worker = self._workers[workload.uid] = Worker(
                workload, self._dependencies, self.table, verify_interval=self._verify_interval
            )
        if worker.wake():
            self._tasks.create_task(self._work(worker), name=f"pod {workload.pod} {workload.uid}")

    async def _work(self, worker: Worker[N]) -> None:
        await worker.run()
        if worker.workload.gone:
            self.table.forget(worker.workload)
            del self._workers[worker.workload.uid]


def _is_out(workload: Workload[N]) -> bool:
    return workload.gone or (workload.state is State.OUTSIDE and workload.netns is None)
