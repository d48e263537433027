"""What an ADD waits for: news from the watch, or an answer of the API server.

While a request waits, its `Waiting` says for what; that is the error's text where the deadline
passes. A failed question is asked again, later each time.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from nodeagent.mesh.backoff import Backoff
from nodeagent.mesh.errors import RetryError

T = TypeVar("T")

CACHE_LAG = 0.25
"""Seconds for which the watch may be behind the runtime before the API server is asked.

Kubelet hears of a pod through a watch like ours, and has volumes to mount first.
Measured with a real API server: 1.3 ms from its answer to the event, 6 ms at the most.
"""

_ASK_TIMEOUT = 5.0
"""Seconds for one answer of the API server; then the question is asked again."""


@dataclass(slots=True)
class Waiting:
    """What a request waits for."""

    why: Callable[[], str]
    """Returns the reason in words, as it is then."""
    look_at: str
    """Where a person sees why it takes so long."""

    def unanswered(self, error: Exception) -> None:
        """Note that the API server could not say: then the pod is held, not let through (L16)."""
        self.why = partial(str, error) if str(error) else _no_answer


async def heard_or_asked(
    heard: Callable[[], Awaitable[T]],
    ask: Callable[[], Awaitable[None]] | None,
    waiting: Waiting,
) -> T:
    """Wait for `heard`, news from the watch; after ``CACHE_LAG``, call `ask` as well.

    `ask` puts what the API server says where `heard` finds it, so `heard` ends in either
    case. `ask` raises ``RetryError`` where the API server cannot say, and is called again.
    None: there is no API server.
    """
    if ask is None:
        return await heard()
    backoff = Backoff()
    lag = CACHE_LAG
    while True:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(lag):
                return await heard()
        try:
            async with asyncio.timeout(_ASK_TIMEOUT):
                await ask()
        except (RetryError, TimeoutError) as error:
            waiting.unanswered(error)
            lag = max(CACHE_LAG, backoff.delay())


async def answered(ask: Callable[[], Awaitable[T]], waiting: Waiting) -> T:
    """Call `ask` until it returns; ``RetryError`` as for `heard_or_asked`."""
    backoff = Backoff()
    while True:
        try:
            async with asyncio.timeout(_ASK_TIMEOUT):
                return await ask()
        except (RetryError, TimeoutError) as error:
            waiting.unanswered(error)
        await asyncio.sleep(max(CACHE_LAG, backoff.delay()))


def _no_answer() -> str:
    return f"the API server has not answered within {_ASK_TIMEOUT:g} s"
