"""An event loop whose clock jumps: for tests of logic that waits for nothing outside of it.

Where every task waits, the clock is set forward to what is due next. Back-offs, grace
periods and deadlines pass at once and in their order, however busy the machine is. Both
ends of a Unix socket may be in such a loop, and threads are waited for; other processes
and other machines would always come too late. For tests marked with ``virtual_time``.
"""

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from typing import Any


class VirtualLoop(asyncio.SelectorEventLoop):
    """Its time passes only while nothing can be done."""

    def __init__(self) -> None:
        self._now = 100_000.0  # of a machine that has been up for a day
        self._at_work = 0
        super().__init__(_Jumping(self))

    def time(self) -> float:
        return self._now

    def pass_by(self, seconds: float) -> None:
        """Set the clock forward."""
        self._now += seconds

    def threads_work(self) -> bool:
        """Whether something runs in a thread that the loop waits for."""
        return self._at_work > 0

    def run_in_executor(  # type: ignore[override]
        self, executor: Executor | None, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        working = super().run_in_executor(executor, func, *args)
        self._at_work += 1
        working.add_done_callback(self._worked)
        return working

    async def shutdown_default_executor(self) -> None:
        self._at_work += 1
        await super().shutdown_default_executor()
        self._at_work -= 1

    def _worked(self, _: asyncio.Future[Any]) -> None:
        self._at_work -= 1


class _Jumping(selectors.DefaultSelector):
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        if self._loop.threads_work():
            return super().select(None)
        if timeout is None:
            raise RuntimeError("every task waits, and nothing is due that could end it")
        self._loop.pass_by(timeout)
        return ready


def run_virtually(main: Coroutine[Any, Any, None]) -> None:
    """``asyncio.run`` of a coroutine, in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(main)
