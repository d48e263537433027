"""Waiting at the start until no other agent, such as Istio's, serves this node.

Two agents would write each other's rules anew, and take each other's sockets away. Whoever
listens at the plugin's socket is another agent, unless this agent's own command socket answers
as well: an agent of ours has that one open for as long as the plugin's. An older agent of ours
is not waited for, and its sockets are replaced.
"""

import asyncio
import contextlib
import socket
import struct

import structlog

from nodeagent.config import Settings

log = structlog.get_logger()

_PAUSE = 1.0
"""Seconds between two looks for the other agent."""
_ANSWER_TIMEOUT = 1.0
"""Seconds for an answer that says whether it is Istio's agent."""
_CREDENTIALS = struct.Struct("=iII")  # struct ucred: process id, user id, group id
_UNKNOWN_TO_ISTIO = b"404 page not found"


async def until_alone(settings: Settings) -> None:
    """Return once no other agent listens at the plugin's socket."""
    waited = False
    while not _listens(settings.admin_socket) and _listens(settings.plugin_socket):
        if not waited:
            log.warning(
                "another agent serves this node; waiting until it ends: remove its DaemonSet,"
                " or this one",
                agent=await _name(settings.plugin_socket),
                socket=settings.plugin_socket,
            )
        waited = True
        await asyncio.sleep(_PAUSE)
    if waited:
        log.info("the other agent has ended")


def _listens(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.setblocking(False)
        try:
            client.connect(path)
        except BlockingIOError:  # its queue is full
            return True
        except OSError:
            return False
        return True


async def _name(path: str) -> str:
    """Who listens at `path`, as far as can be told: whose answer it is, and which process."""
    name = "unknown"
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(_ANSWER_TIMEOUT):
            reader, writer = await asyncio.open_unix_connection(path)
            try:
                name = _process(writer.get_extra_info("socket"))
                writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                if _UNKNOWN_TO_ISTIO in await reader.read(1024):
                    name = f"istio-cni ({name})"
            finally:
                writer.close()
    return name


def _process(connected: socket.socket) -> str:
    pid, _, _ = _CREDENTIALS.unpack(
        connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    )
    try:
        with open(f"/proc/{pid}/comm") as file:
            return f"process {pid}, {file.read().strip()}"
    except OSError:  # in another container: 0, or a number that nobody here has
        return "a process of another container"
