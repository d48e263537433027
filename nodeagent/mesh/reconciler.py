"""One worker per pod: runs the enrollment until it holds, and looks again from time to time."""

import asyncio
import contextlib
import random
import time
from typing import Generic

import structlog

from nodeagent.mesh.backoff import Backoff
from nodeagent.mesh.dependencies import Dependencies
from nodeagent.mesh.eligibility import Policy
from nodeagent.mesh.enrollment import TEAR_DOWN, NetnsConflictError, reconcile
from nodeagent.mesh.errors import GiveUpError, RetryError, TransientError
from nodeagent.mesh.pod import PodUID
from nodeagent.mesh.table import Table
from nodeagent.mesh.workload import N, Redirection, State, Workload

log = structlog.get_logger()

_QUIET = 2.0
"""Seconds without a change after which the next one is looked at immediately."""
_LEAVING_LOOK = 0.5
"""Seconds between two looks at whether a leaving pod's connections have ended."""
TOLD_AFTER = 10.0
"""Seconds for which a pod that is annotated `enabled` may not be so, as when ztunnel restarts."""
_BROKEN = frozenset({State.RETRYING, State.PENDING, State.UNSERVED})
_KEPT_TRUE = frozenset({State.PENDING, State.ENROLLED, State.UNSERVED})


class Reconciler(Generic[N]):
    """Level-triggered: a worker reads what is wanted now, never what has changed.

    Two runs for one pod never overlap; runs for different pods do. A worker
    ends when nothing is left to watch for its pod.
    """

    def __init__(
        self,
        policy: Policy,
        dependencies: Dependencies[N],
        workers: asyncio.TaskGroup,
        *,
        verify_interval: float,
    ) -> None:
        """`verify_interval`: seconds after which an enrolled pod is compared with intent (L1)."""
        self.table = Table[N](policy, self.wake)
        self._dependencies = dependencies
        self._workers = workers
        self._verify_interval = verify_interval
        self._running: set[PodUID] = set()

    async def until_all_attempted(self) -> None:
        """Wait until every pod that is in the table now had its first attempt."""
        for row in self.table:
            await row.until(lambda row: row.attempts > 0)

    async def release(self, seconds: float) -> list[Workload[N]]:
        """Take every pod out of the mesh in order, for good; return those that are not out.

        For a pod of which the API could not be told within the time, nothing has changed:
        peers that take it for enrolled go on being served.
        """
        self.table.release()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                for row in self.table:
                    await row.until(_is_out)
        remain = [row for row in self.table if not _is_out(row)]
        for row in remain:
            if not self._dependencies.reporter.delivered(row.uid):
                self._dependencies.reporter.report(row.pod, Redirection.ENABLED)
        return remain

    def wake(self, row: Workload[N]) -> None:
        """Something about the pod may have changed: look at it now."""
        row.wake.set()
        if row.uid not in self._running:
            self._running.add(row.uid)
            self._workers.create_task(self._work(row), name=f"pod {row.pod} {row.uid}")

    def on_answer(self, uid: PodUID) -> None:
        """News of the pod from elsewhere: ztunnel has answered."""
        if (row := self.table.get(uid)) is not None:
            self.wake(row)

    def on_drift(self, uid: PodUID) -> None:
        """Something was changed in the pod's namespace: look soon, and not too often.

        At once after a quiet time. Where it goes on and on, two components would
        otherwise fight at full speed, and a pod could keep the agent busy.
        """
        if (row := self.table.get(uid)) is None:
            return
        loop = asyncio.get_running_loop()
        quiet = loop.time() - row.last_stirred > _QUIET
        row.last_stirred = loop.time()
        if quiet:
            row.stirred.reset()
            self.wake(row)
        else:
            loop.call_later(row.stirred.delay(), self.on_answer, uid)

    async def _work(self, row: Workload[N]) -> None:
        backoff = Backoff()
        try:
            while row.wake.is_set():
                row.wake.clear()
                delay = await self._attempt(row, backoff)
                self._tell_if_broken(row)
                row.attempted()
                if delay is None:
                    continue
                try:
                    async with asyncio.timeout(delay):
                        await row.wake.wait()
                    backoff.reset()
                except TimeoutError:
                    row.wake.set()
        finally:
            self._running.discard(row.uid)
        if row.gone:
            self.table.forget(row)

    async def _attempt(self, row: Workload[N], backoff: Backoff) -> float | None:
        """Return the seconds until the next look, or None: nothing to do until woken."""
        try:
            await reconcile(row, self._dependencies, self.table)
        except NetnsConflictError as error:
            if row.be(State.RETRYING, str(error)):
                self._dependencies.reporter.netns_conflict(row.pod, error.netns, error.holder)
            return backoff.delay()
        except RetryError as error:
            self._retry(row, error)
            return backoff.delay()
        except GiveUpError as error:
            if row.be(State.FAILED, str(error)):
                log.error("enrollment failed", pod=str(row.pod), uid=row.uid, reason=str(error))  # noqa: TRY400 - the reason is the message
                self._dependencies.reporter.failed(row.pod, str(error))
            return None
        except Exception as error:
            # A fault of ours in one pod's work must not end the others'.
            log.exception("unexpected failure", pod=str(row.pod), uid=row.uid)
            row.be(State.RETRYING, f"unexpected: {error!r}")
            return backoff.delay()
        backoff.reset()
        return self._next_look(row)

    def _next_look(self, row: Workload[N]) -> float | None:
        if row.gone:
            return None
        if row.state is State.LEAVING:
            return _LEAVING_LOOK
        if row.state is State.WAITING and row.sandbox_ended is not None and not row.seen.deleting:
            return TEAR_DOWN
        if row.state in _KEPT_TRUE:
            return self._verify_interval * random.uniform(0.75, 1.25)  # noqa: S311 - spreads load
        return None

    def _retry(self, row: Workload[N], error: RetryError) -> None:
        """Say why, once: as a warning only where it is not a pod's ordinary end."""
        news = row.be(State.RETRYING, str(error))
        if news:
            row.warned = False
        passes = isinstance(error, TransientError) and time.time() - row.since < TEAR_DOWN
        if row.seen.deleting or passes:
            if news:
                log.info("will try again", pod=str(row.pod), uid=row.uid, reason=str(error))
        elif not row.warned:
            row.warned = True
            log.warning("will try again", pod=str(row.pod), uid=row.uid, reason=str(error))

    def _tell_if_broken(self, row: Workload[N]) -> None:
        """Tell the cluster where the annotation promises what is not so for some time (L41)."""
        broken = row.reported is Redirection.ENABLED and row.state in _BROKEN
        if not broken or row.gone or row.seen.deleting:
            row.broken_since, row.told_broken = None, False
            return
        now = asyncio.get_running_loop().time()
        if row.broken_since is None:
            row.broken_since = now
        if not row.told_broken and now - row.broken_since >= TOLD_AFTER:
            row.told_broken = True
            self._dependencies.reporter.broken(row.pod, row.detail)


def _is_out(row: Workload[N]) -> bool:
    return row.gone or (row.state is State.OUTSIDE and row.namespace is None)
