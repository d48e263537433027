"""An event loop whose clock jumps: for tests of logic that waits for nothing outside of it.

Where every task waits, the clock is set forward to what is due next. Back-offs, grace
periods and deadlines pass at once and in their order, however busy the machine is. Threads,
subprocesses and other machines' answers are no part of such a test: they would come too late.
"""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any


class VirtualLoop(asyncio.SelectorEventLoop):
    """Its time passes only while nothing can be done."""

    def __init__(self) -> None:
        self._now = 100_000.0  # of a machine that has been up for a day
        super().__init__(_Jumping(self))

    def time(self) -> float:
        return self._now

    def pass_by(self, seconds: float) -> None:
        """Set the clock forward."""
        self._now += seconds


class _Jumping(selectors.DefaultSelector):
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            if timeout is None:
                raise RuntimeError("every task waits, and nothing is due that could end it")
            self._loop.pass_by(timeout)
        return ready


def run_virtually(main: Coroutine[Any, Any, None]) -> None:
    """``asyncio.run`` of a coroutine, in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(main)
