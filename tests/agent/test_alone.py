"""Two agents on one node: the second waits for another's, and takes over from one of ours."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.agent.processes import Node
from tests.eventually import eventually, listens

ISTIO = (
    b"HTTP/1.1 404 Not Found\r\nContent-Length: 19\r\nConnection: close\r\n\r\n404 page not found\n"
)
WAITING, OVER = "another agent serves this node", "the other agent has ended"


@contextlib.asynccontextmanager
async def istios_agent(path: str) -> AsyncIterator[list[str]]:
    """Listen at `path`, and answer every request as Go's server does one that it does not know.

    Yields a list with one element for each connection so far.
    """
    connections: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(path)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(ISTIO)
            await writer.drain()
        writer.close()

    os.makedirs(os.path.dirname(path))
    async with await asyncio.start_unix_server(serve, path):
        yield connections


def inode(path: str) -> int | None:
    try:
        return os.stat(path).st_ino
    except FileNotFoundError:
        return None


def logged(node: Node) -> str:
    return node.log.read_text() if node.log.exists() else ""


async def test_another_agent_is_waited_for(node: Node) -> None:
    """One line names it. Its socket stays, and ours are made when it has ended."""
    plugin = node.settings.plugin_socket
    async with istios_agent(plugin) as connections:
        own = inode(plugin)
        node.start()
        await eventually(lambda: WAITING in logged(node))
        await eventually(lambda: len(connections) > 3)  # it has looked again
        assert inode(plugin) == own
        assert not Path(node.zds).exists()
        assert not Path(node.settings.admin_socket).exists()
    await eventually(lambda: OVER in logged(node) and listens(plugin))
    (line,) = [line for line in logged(node).splitlines() if WAITING in line]
    assert f"istio-cni (process {os.getpid()}, " in line
    assert await node.stop() == 0


async def test_a_wait_ends_with_the_signal(node: Node) -> None:
    """To be told to stop while waiting is no failure."""
    async with istios_agent(node.settings.plugin_socket):
        node.start()
        await eventually(lambda: WAITING in logged(node))
        assert await node.stop() == 0


@pytest.mark.parametrize("killed", [False, True])
async def test_an_agent_of_ours_is_not_waited_for(node: Node, *, killed: bool) -> None:
    """Neither an older one that still runs, nor what one has left that was killed."""
    plugin = node.settings.plugin_socket
    node.start()
    await eventually(lambda: listens(plugin))
    older, own = node.process, inode(plugin)
    if killed:
        node.signal(signal.SIGKILL)
        await node.ended()
        node.start()
        await eventually(lambda: listens(plugin))
    else:
        node.start()
        await eventually(lambda: inode(plugin) not in {None, own} and listens(plugin))
    assert WAITING not in logged(node)
    assert await node.stop() == 0
    if not killed:
        older.kill()
        older.join()
