"""Requests to the API server that have to succeed, however long that takes."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from nodeagent.cluster.api import ApiError
from nodeagent.mesh.backoff import Backoff

T = TypeVar("T")

_SHORTEST = 0.1
"""Seconds between two attempts at the least."""


async def retried(
    attempt: Callable[[], Awaitable[T]], *, longest: float, warn: Callable[[ApiError], None]
) -> T:
    """Call `attempt` until it raises no ``ApiError``, and return what it returns.

    Between two attempts are at most `longest` seconds, or as many as the server asks for.
    `warn` is called for the first failure, and again where the HTTP status differs from
    that of the last warning. A conflict is not warned of: kubelet and controllers write to
    the same objects, and the next attempt reads them anew.
    """
    backoff = Backoff(longest=longest)
    warned_of: object = ()
    while True:
        try:
            return await attempt()
        except ApiError as error:
            if not error.conflict and error.status != warned_of:
                warned_of = error.status
                warn(error)
            await asyncio.sleep(max(backoff.delay(), error.retry_after or 0, _SHORTEST))
