"""Finds out which function holds up the event loop, while it does.

Everything in the agent shares one event loop, so a function that computes for long, or waits
for the disk, delays every pod. The loop of this module notes when it begins to wait for
events and when it stops waiting. A thread reads these notes; where the loop has been at work
for `HELD` seconds, the thread looks at the stack of the loop's thread and logs it. While the
loop waits, the thread sleeps: an agent at rest spends nothing on it.
"""

import asyncio
import contextlib
import os
import selectors
import sys
import threading
import time
import traceback
from bisect import bisect_left
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field
from types import CodeType, FrameType
from typing import Any, TypeVar

import structlog

T = TypeVar("T")

log = structlog.get_logger()

HELD = 0.1
"""Seconds; fifty times what the agent's longest step takes on a quiet node."""
_AGAIN = 60.0
"""Seconds until the same function is logged again."""
_PLACES = 100
"""Functions of which is remembered when they were logged."""
_CALLS = 4
"""Functions of the stack that are logged, the innermost first."""
_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


TURN_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
"""Upper bounds of the classes in which the loop's turns are counted, in seconds."""


@dataclass(slots=True)
class Turns:
    """How long the loop was at work between two waits for events: nothing else ran meanwhile."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(TURN_BUCKETS) + 1))
    """The number of turns in each class of `TURN_BUCKETS`; the last is that of the longer ones."""
    seconds: float = 0.0
    """Of all turns together."""


def turns() -> Turns:
    """The turns of the running loop so far; none in a loop that `run` has not made."""
    loop = asyncio.get_running_loop()
    return loop.notes.turns if isinstance(loop, _WatchedLoop) else Turns()


def run(main: Coroutine[Any, Any, T]) -> T:
    """Like ``asyncio.run``, in a loop that `watching_loop` can watch."""
    with asyncio.Runner(loop_factory=_WatchedLoop) as runner:
        return runner.run(main)


@contextlib.contextmanager
def watching_loop(held: float = HELD) -> Iterator[None]:
    """Log what holds up the running loop for longer than `held` seconds, until the block ends.

    Each function is logged at most once a minute. Does nothing in a loop that `run` has not
    made.
    """
    loop = asyncio.get_running_loop()
    if not isinstance(loop, _WatchedLoop):
        yield
        return
    watch = _Watch(loop, loop.notes, held)
    watch.start()
    try:
        yield
    finally:
        watch.stop()


class _WatchedLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.notes = _Notes()
        super().__init__(self.notes)


class _Notes(selectors.DefaultSelector):
    """The loop's selector, which notes since when the loop has been at work."""

    def __init__(self) -> None:
        super().__init__()
        self.turns = Turns()
        self.turn = 0
        """The number of turns that the loop has made."""
        self.working_since: float | None = None
        """In seconds of the monotonic clock; None: the loop waits for events."""
        self.parked = False
        """Whether the watching thread sleeps until the loop is at work again."""
        self.works = threading.Event()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if self.working_since is not None:
            worked = time.monotonic() - self.working_since
            self.turns.counts[bisect_left(TURN_BUCKETS, worked)] += 1
            self.turns.seconds += worked
        self.working_since = None
        try:
            return super().select(timeout)
        finally:
            self.turn += 1
            self.working_since = time.monotonic()
            if self.parked:
                self.parked = False
                self.works.set()


class _Watch:
    """The thread that watches the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, notes: _Notes, held: float) -> None:
        self._loop = loop
        self._notes = notes
        self._held = held
        self._loops_thread = threading.get_ident()
        self._over = threading.Event()
        self._told: dict[CodeType, float] = {}
        self._thread = threading.Thread(target=self._work, name="loop watch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._notes.works.set()
        self._thread.join()

    def _work(self) -> None:
        told_of, seen = -1, -1
        while not self._over.wait(self._held / 2):
            turn, since = self._notes.turn, self._notes.working_since
            if since is None and turn == seen:
                self._park()
            elif since is not None and turn != told_of:
                seconds = time.monotonic() - since
                if seconds >= self._held:
                    told_of = turn
                    self._tell(seconds)
            seen = turn

    def _park(self) -> None:
        notes = self._notes
        notes.works.clear()
        notes.parked = True
        # The loop may have begun to work just before `parked` was set.
        if notes.working_since is None and not self._over.is_set():
            notes.works.wait()
        notes.parked = False

    def _tell(self, seconds: float) -> None:
        task = asyncio.current_task(self._loop)
        frame = sys._current_frames().get(self._loops_thread)  # noqa: SLF001 - the documented way to another thread's stack
        if frame is None:
            return
        calls = list(traceback.walk_stack(frame))
        culprit, now = calls[0][0].f_code, time.monotonic()
        if now - self._told.get(culprit, float("-inf")) < _AGAIN:
            return
        if len(self._told) >= _PLACES:
            self._told.clear()
        self._told[culprit] = now
        log.warning(
            "something holds up the event loop, and every pod with it",
            seconds=round(seconds, 3),
            task=task.get_name() if task else "a callback",
            at=" < ".join(_place(frame, line) for frame, line in calls[:_CALLS]),
        )


def _place(frame: FrameType, line: int) -> str:
    code = frame.f_code
    return f"{code.co_qualname} ({os.path.relpath(code.co_filename, _ROOT)}:{line})"
