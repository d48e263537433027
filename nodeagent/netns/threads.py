"""Running code inside other network namespaces, in threads that do nothing else.

The kernel keeps the current netns for each thread. So a netns is entered only in a thread of
this module, and the thread returns to its own netns behind each job. A thread that cannot
return ends, so that nothing runs in the wrong netns.

A job cannot be stopped, and a pod may have made it slow (L36). Three things keep one pod from
making others wait. Each netns has one job at a time. A netns whose jobs have cost much takes
another lane than the rest, or gets no job for some time (`costs.py`). And a job that takes
longer than `OVERTIME` leaves its lane to others, and runs on beside it.
"""

import asyncio
import contextlib
import errno
import os
import queue
import threading
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from nodeagent.linux import syscalls as kernel
from nodeagent.linux.thread_start import start_thread
from nodeagent.netns.costs import Account, Cost, Limits
from nodeagent.netns.netns import Netns, NetnsId
from nodeagent.observer import NOBODY, Observer

T = TypeVar("T")

LANE = 4
"""Jobs at a time in the lane of ordinary pods: both cores of a small node are busy while
others wait for the kernel to finish a transaction."""
SLOW_LANE = 4
"""Jobs at a time in the lane of costly pods. They do not leave it before their end."""
OVERTIME = 0.25
"""Seconds; a hundred times what a job in an ordinary pod takes."""
MOST_OVERTIME = 16
"""Jobs that run on beside the lane; beyond it, they keep their places."""
_FAREWELL = 5.0
"""Seconds that `close` waits for jobs; the kernel may hold one for longer."""
_SWEEP = 1024
"""Netns that are remembered before those without a debt are forgotten."""


class TooCostlyError(OSError):
    """Jobs in this netns have cost too much lately; try again later."""

    def __str__(self) -> str:
        return str(self.strerror)


class NetnsThreads:
    """A few threads, each of which enters a netns, runs one function and returns."""

    def __init__(
        self,
        size: int = LANE,
        *,
        limits: Limits = Limits(),  # noqa: B008 - frozen
        overtime: float = OVERTIME,
        so_far: Callable[[], Cost] = Cost.so_far,
        observer: Observer = NOBODY,
    ) -> None:
        """`size`: jobs at a time in the lane of ordinary pods; `overtime` is in seconds.

        Between jobs the threads are in the netns of the caller. Raises ``OSError``.
        """
        self._may_take = overtime
        self._home = Netns.current()
        self._limits = limits
        self._so_far = so_far
        self._observer = observer
        self._lane = asyncio.Semaphore(size)
        self._slow_lane = asyncio.Semaphore(SLOW_LANE)
        self._visited: dict[NetnsId, _Visited] = {}
        self._sweep_at = _SWEEP
        self._jobs: queue.SimpleQueue[_Job[Any] | None] = queue.SimpleQueue()
        self._threads: set[threading.Thread] = set()
        self._running = 0
        self._overtime = 0
        self._closed = False

    async def run(self, netns: Netns, function: Callable[[], T]) -> T:
        """Run `function` inside `netns`, and return what it returns, or raise what it raises.

        The job has its own duplicate of the descriptor: the owner may close
        `netns`, or the caller be cancelled, while `function` still runs. A job that
        has not begun when its caller is cancelled never does.
        Raises ``OSError`` if `netns` cannot be entered, and `TooCostlyError`.
        """
        target = os.dup(netns.fd)
        try:
            place = await self._place(netns.id)
        except BaseException:
            os.close(target)
            raise
        return await self._begin(target, function, place)

    @property
    def jobs(self) -> int:
        """How many jobs run, or wait for a thread to run them."""
        return self._running

    def close(self) -> None:
        """Wait for what runs, some seconds at the most; what has not begun is refused."""
        self._closed = True
        for _ in self._threads:
            self._jobs.put(None)
        deadline = time.monotonic() + _FAREWELL
        for thread in list(self._threads):
            thread.join(max(0.0, deadline - time.monotonic()))
        if not any(thread.is_alive() for thread in self._threads):
            self._home.close()  # else the agent's end closes it: a thread may still need it
        self._threads.clear()

    async def _place(self, netns: NetnsId) -> "_Place":
        """Wait until a job in `netns` may begin."""
        came = time.monotonic()
        visited = self._visited_netns(netns)
        await visited.turn.acquire()
        try:
            lane = self._lane_for(visited.account)
            await lane.acquire()
        except BaseException:
            visited.turn.release()
            raise
        self._observer.netns_job_began(time.monotonic() - came)
        return _Place(visited, lane)

    def _lane_for(self, account: Account) -> asyncio.Semaphore:
        if account.rest:
            raise TooCostlyError(errno.EBUSY, "looks at it take too long, and are spaced out")
        return self._lane if account.cheap else self._slow_lane

    def _begin(
        self, target: int, function: Callable[[], T], place: "_Place"
    ) -> "asyncio.Future[T]":
        job = _Job(target, function, place, self._so_far, self._ended)
        self._running += 1
        if self._closed:
            job.refuse(OSError(errno.ESHUTDOWN, "the agent stops"))
            return job.result
        if self._running > len(self._threads):
            try:
                self._start_thread()
            except OSError as error:
                if not self._threads:
                    job.refuse(error)
                    return job.result
                # Otherwise the job waits until one of the threads is free.
        if place.lane is self._lane:
            place.overtime = job.loop.call_later(self._may_take, self._give_up_place, place)
        self._jobs.put(job)
        return job.result

    def _give_up_place(self, place: "_Place") -> None:
        if self._overtime < MOST_OVERTIME:
            self._overtime += 1
            place.leave_lane()

    def _ended(self, place: "_Place", cost: Cost, lost: threading.Thread | None) -> None:
        self._running -= 1
        if lost is not None:
            self._threads.discard(lost)
        if place.lane is None:
            self._overtime -= 1
        place.leave(cost)

    def _start_thread(self) -> None:
        # A new thread starts in the netns of the thread that makes it, so only the event
        # loop's thread makes them, never one that may be in a pod.
        thread = threading.Thread(target=self._work, name="netns", daemon=True)
        start_thread(thread)
        self._threads.add(thread)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            if not job.do(self._home.fd):
                return

    def _visited_netns(self, netns: NetnsId) -> "_Visited":
        known = self._visited.get(netns)
        if known is None:
            if len(self._visited) >= self._sweep_at:
                self._visited = {n: one for n, one in self._visited.items() if one.in_use}
                self._sweep_at = max(_SWEEP, 2 * len(self._visited))
            known = self._visited[netns] = _Visited(
                Account(self._limits, lambda: self._so_far().held)
            )
        return known


class _Visited:
    """What is remembered of a netns in which jobs have run."""

    __slots__ = ("account", "turn")

    def __init__(self, account: Account) -> None:
        self.account = account
        self.turn = asyncio.Lock()
        """Held until a job's end, which may outlast its caller."""

    @property
    def in_use(self) -> bool:
        return self.turn.locked() or not self.account.settled


class _Place:
    """A job's turn in its netns, and its place in a lane."""

    __slots__ = ("_visited", "lane", "overtime")

    def __init__(self, visited: _Visited, lane: asyncio.Semaphore) -> None:
        self._visited = visited
        self.lane: asyncio.Semaphore | None = lane
        """None: the job runs on beside the lane of ordinary pods."""
        self.overtime: asyncio.TimerHandle | None = None

    def leave_lane(self) -> None:
        if self.lane is not None:
            self.lane.release()
            self.lane = None

    def leave(self, cost: Cost) -> None:
        if self.overtime is not None:
            self.overtime.cancel()
        self._visited.account.charge(cost)
        self.leave_lane()
        self._visited.turn.release()


class _Job(Generic[T]):
    """One call of a function in a netns."""

    def __init__(
        self,
        target: int,
        function: Callable[[], T],
        place: _Place,
        so_far: Callable[[], Cost],
        ended: Callable[[_Place, Cost, threading.Thread | None], None],
    ) -> None:
        self._target = target
        self._function = function
        self._place = place
        self._so_far = so_far
        self._ended = ended
        self.loop = asyncio.get_running_loop()
        self.result: asyncio.Future[T] = self.loop.create_future()

    def do(self, home: int) -> bool:
        """Run the function in the calling thread; return whether the thread is in `home` again."""
        began = self._so_far()
        try:
            value, error = _run_inside(self._target, self._function), None
        except BaseException as caught:  # noqa: BLE001 - handed to the caller, whatever it is
            value, error = None, caught
        returned = _returned_to(home)
        cost = self._so_far().since(began)
        lost = None if returned else threading.current_thread()
        # RuntimeError: the loop ended while the job ran; nobody waits for it.
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self._settle, value, error, cost, lost)
        return returned

    def refuse(self, reason: OSError) -> None:
        """End the job without having begun."""
        os.close(self._target)
        self._settle(None, reason, Cost(0, 0), None)

    def _settle(
        self, value: Any, error: BaseException | None, cost: Cost, lost: threading.Thread | None
    ) -> None:
        self._ended(self._place, cost, lost)
        if self.result.done():
            return
        if error is None:
            self.result.set_result(value)
        else:
            self.result.set_exception(error)


def _run_inside(target: int, function: Callable[[], T]) -> T:
    try:
        kernel.setns(target, kernel.CLONE_NEWNET)
    finally:
        os.close(target)
    return function()


def _returned_to(home: int) -> bool:
    try:
        kernel.setns(home, kernel.CLONE_NEWNET)
    except OSError:
        return False
    return True
