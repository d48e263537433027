"""The worker of one pod: runs the steps of `enrollment.py` until they have succeeded.

A worker is a task only while there is something to do or to look at again. What it has to
remember between two tasks (how often changes were heard lately, what it has warned of) is
in its `Worker` object, which lives as long as the pod's entry in the table.
"""

import asyncio
import random
import time
from collections.abc import Callable
from typing import Generic

import structlog

from nodeagent.mesh.annotation import Redirection
from nodeagent.mesh.backoff import Backoff
from nodeagent.mesh.dependencies import Dependencies
from nodeagent.mesh.enrollment import SANDBOX_TEARDOWN, reconcile
from nodeagent.mesh.errors import GiveUpError, NetnsConflictError, RetryError, TransientError
from nodeagent.mesh.held import N
from nodeagent.mesh.progress import State
from nodeagent.mesh.table import Table
from nodeagent.mesh.workload import Workload

log = structlog.get_logger()

_QUIET = 2.0
"""Seconds without drift after which the next drift is looked at immediately."""
_LONGEST_DRIFT_DELAY = 1.0
"""Seconds; a rule that is deleted is back within about a second, however busy its pod is."""
_DRAIN_INTERVAL = 0.5
"""Seconds between two looks at whether a leaving pod's connections have ended."""
REPORT_BROKEN_AFTER = 10.0
"""Seconds for which a pod that is annotated `enabled` may not be served, as when ztunnel
restarts, before an event says so."""
_BROKEN = frozenset({State.RETRYING, State.PENDING, State.UNSERVED})
_VERIFIED = frozenset({State.PENDING, State.ENROLLED, State.UNSERVED})


class Worker(Generic[N]):
    """Runs one pod's steps, one run at a time, and decides when to run them again."""

    def __init__(
        self,
        workload: Workload[N],
        dependencies: Dependencies[N],
        table: Table[N],
        *,
        verify_interval: float,
    ) -> None:
        """`verify_interval`: seconds until a redirected pod is verified again."""
        self.workload = workload
        self._dependencies = dependencies
        self._table = table
        self._verify_interval = verify_interval
        self._wakeup = asyncio.Event()
        self.running = False
        """Whether `run` is under way; set from the moment it is to be started."""
        self._drift_backoff = Backoff(longest=_LONGEST_DRIFT_DELAY)
        self._last_drift = 0.0
        self._warned = False
        """Whether the reason for which the pod is retried now was logged as a warning."""
        self._broken_since: float | None = None
        """The event loop's time since when the pod is annotated `enabled` and not served."""
        self._broken_reported = False

    def wake(self) -> bool:
        """Have the steps run now. Returns whether `run` has to be started for that."""
        self._wakeup.set()
        start, self.running = not self.running, True
        return start

    def drift_delay(self) -> float:
        """Seconds after which drift that was heard of now is to be looked at.

        None at all after a quiet time. Where drift goes on and on, two components would
        otherwise fight at full speed, and a pod could keep the agent busy.
        """
        now = asyncio.get_running_loop().time()
        quiet = now - self._last_drift > _QUIET
        self._last_drift = now
        if quiet:
            self._drift_backoff.reset()
            return 0.0
        return self._drift_backoff.delay()

    async def run(self) -> None:
        """Run the steps, again and again; return when there is nothing to do until woken."""
        backoff = Backoff()
        try:
            while self._wakeup.is_set():
                self._wakeup.clear()
                delay = await self._attempt(backoff)
                self._report_if_broken()
                self.workload.progress.attempt_ended()
                if delay is None:
                    continue
                try:
                    async with asyncio.timeout(delay):
                        await self._wakeup.wait()
                    backoff.reset()
                except TimeoutError:
                    self._wakeup.set()
        finally:
            self.running = False

    async def _attempt(self, backoff: Backoff) -> float | None:
        """Return the seconds until the next run, or None: nothing to do until woken."""
        workload, reporter = self.workload, self._dependencies.reporter
        try:
            await reconcile(workload, self._dependencies, self._table)
        except NetnsConflictError as error:
            if workload.progress.set_state(State.RETRYING, str(error)):
                reporter.netns_conflict(workload.pod, error.netns, error.holder)
            return backoff.delay()
        except RetryError as error:
            self._note_retry(error)
            return backoff.delay()
        except GiveUpError as error:
            if workload.progress.set_state(State.FAILED, str(error)):
                log.error(  # noqa: TRY400 - the reason is the message
                    "enrollment failed",
                    pod=str(workload.pod),
                    uid=workload.uid,
                    reason=str(error),
                )
                reporter.failed(workload.pod, str(error))
            return None
        except Exception as error:
            # A fault of ours in one pod's work must not end the others'.
            log.exception("unexpected failure", pod=str(workload.pod), uid=workload.uid)
            workload.progress.set_state(State.RETRYING, f"unexpected: {error!r}")
            return backoff.delay()
        backoff.reset()
        return self._next_look()

    def _next_look(self) -> float | None:
        workload = self.workload
        if workload.gone:
            return None
        if workload.state is State.LEAVING:
            return _DRAIN_INTERVAL
        if (
            workload.state is State.WAITING
            and workload.sandbox_ended is not None
            and not workload.seen.deleting
        ):
            return SANDBOX_TEARDOWN
        if workload.state in _VERIFIED:
            return self._verify_interval * random.uniform(0.75, 1.25)  # noqa: S311 - spreads load
        return None

    def _note_retry(self, error: RetryError) -> None:
        """Log the reason once: as a warning only where it is not a pod's ordinary end."""
        workload = self.workload
        changed = workload.progress.set_state(State.RETRYING, str(error))
        if changed:
            self._warned = False
        lasts = time.time() - workload.progress.since >= SANDBOX_TEARDOWN
        if workload.seen.deleting or (isinstance(error, TransientError) and not lasts):
            if changed:
                self._log_retry(log.info, error)
        elif not self._warned:
            self._warned = True
            self._log_retry(log.warning, error)

    def _log_retry(self, write: Callable[..., object], error: RetryError) -> None:
        pod = self.workload.pod
        write("will try again", pod=str(pod), uid=pod.uid, reason=str(error))

    def _report_if_broken(self) -> None:
        """Tell the cluster where a pod is annotated `enabled`, and not served for some time."""
        workload = self.workload
        enabled = workload.annotation.value is Redirection.ENABLED
        if not enabled or workload.state not in _BROKEN or workload.gone or workload.seen.deleting:
            self._broken_since, self._broken_reported = None, False
            return
        now = asyncio.get_running_loop().time()
        if self._broken_since is None:
            self._broken_since = now
        if not self._broken_reported and now - self._broken_since >= REPORT_BROKEN_AFTER:
            self._broken_reported = True
            self._dependencies.reporter.broken(workload.pod, workload.detail)
