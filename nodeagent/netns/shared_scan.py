"""One look at the node that serves many pods."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from nodeagent.mesh.errors import RetryError

T = TypeVar("T")

_GATHERING = 0.005
"""Seconds for which a look waits for others that want it: a moment in a pod's start."""
_FRESH = 1.0
"""Seconds for which a look answers for what it found; a pod's sandbox outlives that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _PassResult(Generic[T]):
    started: float
    found: Mapping[str, T]
    failure: str | None
    answered: set[str] = field(default_factory=set)


class SharedScan(Generic[T]):
    """Answers by UID what a look at all pods finds; the callers at one moment share one look."""

    def __init__(self, look: Callable[[], Awaitable[Mapping[str, T]]], *, apart: float) -> None:
        """`look` raises ``RetryError``; `apart`: seconds from one look's start to the next's."""
        self._look = look
        self._apart = apart
        self._last: _PassResult[T] | None = None
        self._taking: asyncio.Event | None = None

    async def ask(self, uid: str) -> T | None:
        """What is there for `uid`, None for nothing; each answer is given once.

        So who comes back, because the answer was no good, gets one that is newer.
        Raises ``RetryError`` where the look fails.
        """
        asked = asyncio.get_running_loop().time()
        while (last := self._last) is None or not self._answers(last, uid, asked):
            if self._taking is None:
                await self._take()
            else:
                await self._taking.wait()
        last.answered.add(uid)
        if last.failure is not None:
            raise RetryError(last.failure)
        return last.found.get(uid)

    def _answers(self, last: _PassResult[T], uid: str, asked: float) -> bool:
        fresh = asked - last.started < _FRESH and uid in last.found and uid not in last.answered
        return fresh or last.started >= asked

    async def _take(self) -> None:
        now = asyncio.get_running_loop().time
        earliest = self._last.started + self._apart if self._last else 0.0
        taking = self._taking = asyncio.Event()
        try:
            await asyncio.sleep(max(_GATHERING, earliest - now()))
            started = now()
            try:
                self._last = _PassResult(started=started, found=await self._look(), failure=None)
            except RetryError as error:
                self._last = _PassResult(started=started, found={}, failure=str(error))
        finally:
            # Who is cut off leaves the look to one of those who wait.
            self._taking = None
            taking.set()
