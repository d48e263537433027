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


def listens(path: str) -> bool:
    """Whether a Unix socket listens at `path`, which exists a moment before."""
    with open("/proc/net/unix", encoding="utf-8", errors="replace") as sockets:
        rows = [line.split(maxsplit=7) for line in sockets]
    # The flag __SO_ACCEPTCON of linux/net.h.
    return any(row[3] == "00010000" and row[7:] == [f"{path}\n"] for row in rows)
