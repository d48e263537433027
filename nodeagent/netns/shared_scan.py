"""One pass over the whole node that answers for many pods.

To find one pod's netns means to list all sandboxes or to read all processes. Where many pods
ask at about the same time, as at a start of the agent, all of them are answered by one pass.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from nodeagent.mesh.errors import RetryError

T = TypeVar("T")

_GATHERING = 0.005
"""Seconds that a pass waits for others that ask: little in a pod's start."""
_FRESH = 1.0
"""Seconds for which a pass answers for what it found; a pod's sandbox lives longer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _PassResult(Generic[T]):
    started: float
    """The event loop's time."""
    found: Mapping[str, T]
    failure: str | None
    answered: set[str] = field(default_factory=set)
    """The UIDs for which this result was given already."""


class SharedScan(Generic[T]):
    """Answers by UID what one pass over the node has found."""

    def __init__(self, scan: Callable[[], Awaitable[Mapping[str, T]]], *, apart: float) -> None:
        """`scan` is one pass, and raises ``RetryError``.

        `apart`: seconds from the start of one pass to the start of the next at the least.
        """
        self._scan = scan
        self._apart = apart
        self._last: _PassResult[T] | None = None
        self._under_way: asyncio.Event | None = None
        """Set at the end of the pass that runs now; None: no pass runs."""

    async def ask(self, uid: str) -> T | None:
        """What was found for `uid`, None for nothing. Raises ``RetryError`` where a pass fails.

        A result is given once for each UID: whoever asks again, because the answer was no
        good, gets one of a later pass.
        """
        asked = asyncio.get_running_loop().time()
        while (last := self._last) is None or not self._answers(last, uid, asked):
            if self._under_way is None:
                await self._run_pass()
            else:
                await self._under_way.wait()
        last.answered.add(uid)
        if last.failure is not None:
            raise RetryError(last.failure)
        return last.found.get(uid)

    def _answers(self, last: _PassResult[T], uid: str, asked: float) -> bool:
        fresh = asked - last.started < _FRESH and uid in last.found and uid not in last.answered
        return fresh or last.started >= asked

    async def _run_pass(self) -> None:
        now = asyncio.get_running_loop().time
        earliest = self._last.started + self._apart if self._last else 0.0
        under_way = self._under_way = asyncio.Event()
        try:
            await asyncio.sleep(max(_GATHERING, earliest - now()))
            started = now()
            try:
                self._last = _PassResult(started=started, found=await self._scan(), failure=None)
            except RetryError as error:
                self._last = _PassResult(started=started, found={}, failure=str(error))
        finally:
            # If this caller was cancelled, one of those who wait runs the next pass.
            self._under_way = None
            under_way.set()
