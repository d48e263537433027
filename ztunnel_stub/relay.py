"""Carrying bytes between two TCP connections, both ways."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable

from ztunnel_stub.connection import Connection

_CHUNK = 1 << 18
_ABORT = struct.pack("ii", 1, 0)  # struct linger: close sends a reset


async def relay(client: socket.socket, upstream: socket.socket, connection: Connection) -> None:
    """Pass bytes on until both sides have ended; each side's end is passed on by itself.

    Neither direction reads faster than its other end takes. Raises ``OSError`` when a side
    breaks. The sockets stay the caller's.
    """
    try:
        async with asyncio.TaskGroup() as directions:
            directions.create_task(_pump(client, upstream, connection.count_sent), name="relay")
            await _pump(upstream, client, connection.count_received)
    except ExceptionGroup as broken:
        raise broken.exceptions[0] from None


def abort(*sockets: socket.socket) -> None:
    """Let the coming ``close`` reset the connection: its peer is not to take it as complete."""
    for sock in sockets:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)


async def _pump(source: socket.socket, sink: socket.socket, count: Callable[[int], None]) -> None:
    loop = asyncio.get_running_loop()
    while data := await loop.sock_recv(source, _CHUNK):
        await loop.sock_sendall(sink, data)
        count(len(data))
    with contextlib.suppress(OSError):  # a reset is reported by the other direction
        sink.shutdown(socket.SHUT_WR)
