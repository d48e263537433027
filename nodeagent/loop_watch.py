"""Who holds up the event loop, and where: found out from outside while it happens.

Everything in the agent shares one event loop, so a function that computes for long, or
waits for the disk, delays every pod. The loop here notes when it begins and ends to wait
for events. A thread looks at that note while the loop works, and, where the loop has not
waited for `HELD` seconds, at what the loop's thread is doing. While the loop only waits,
the thread sleeps: at rest it costs nothing.
"""

import asyncio
import contextlib
import os
import selectors
import sys
import threading
import time
import traceback
from collections.abc import Coroutine, Iterator
from types import CodeType, FrameType
from typing import Any, TypeVar

import structlog

T = TypeVar("T")

log = structlog.get_logger()

HELD = 0.1
"""Seconds; fifty times what the agent's longest step takes on a quiet node."""
_AGAIN = 60.0
"""Seconds until the same function is told of again."""
_PLACES = 100
"""Functions that are remembered for that."""
_CALLS = 4
"""Functions that are named: the innermost, and who called it."""
_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def run(main: Coroutine[Any, Any, T]) -> T:
    """Do as ``asyncio.run`` does, in a loop that can be watched."""
    with asyncio.Runner(loop_factory=_WatchedLoop) as runner:
        return runner.run(main)


@contextlib.contextmanager
def watching_loop(held: float = HELD) -> Iterator[None]:
    """Log whoever holds up the running loop for longer than `held` seconds, until the end.

    Each function at most once a minute. Nobody is watched in a loop that `run` has not made.
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
    """The loop's selector, which knows since when the loop has been at work."""

    def __init__(self) -> None:
        super().__init__()
        self.turn = 0
        """Tells one turn of the loop from the next."""
        self.working_since: float | None = None
        """None: the loop waits for events."""
        self.parked = False
        """The watching thread sleeps until the loop works again."""
        self.works = threading.Event()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
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
    """The thread."""

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
        # It may have begun to work just before it could see that the thread is parked.
        if notes.working_since is None and not self._over.is_set():
            notes.works.wait()
        notes.parked = False

    def _tell(self, seconds: float) -> None:
        task = asyncio.current_task(self._loop)
        frame = sys._current_frames().get(self._loops_thread)  # noqa: SLF001 - documented
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
