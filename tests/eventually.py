"""Waiting for what happens elsewhere: in the kernel, in another process."""

import asyncio
from collections.abc import Callable

PATIENCE = 60.0
"""Seconds that a test waits at most for what has to happen. Only a fault takes so long, on a
machine that is busy with other things as well; whoever waits for less tests the machine."""


async def eventually(condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
    """Look until `condition` holds. Raises ``TimeoutError`` if it never does."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - nothing tells us
            await asyncio.sleep(0.001)
