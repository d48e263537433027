"""The sockets at which CNI plugins ask: ours at ``/cni``, Istio's at ``/cmdadd`` and ``/log``.

Only root may connect, and each request is bounded in size and time before it is read.
"""

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable
from functools import partial

import structlog
from aiohttp import web

from nodeagent.cni import plugin_log, result
from nodeagent.cni.errors import CniError, Code
from nodeagent.cni.plugin import Answer, Plugin
from nodeagent.cni.versions import NEWEST
from nodeagent.http_listener import Bounds, application, serve_http
from nodeagent.linux.unix_sockets import listening
from nodeagent.mesh.held import N

log = structlog.get_logger()

ROOT_UID = 0
"""User ID of those who are answered: root, as container runtimes are."""
MAX_BODY = (1 << 20) + (1 << 18)
"""Bytes of a request: what the binary takes from standard input, and its environment."""
BODY_DEADLINE = 5.0
"""Seconds for which the rest of a request is waited for: the binary sends it in one piece."""
_BOUNDS = Bounds(connections=1024, seconds=5, body=MAX_BODY)
"""A node starts fewer pods at once than these connections."""
_STOP_TIMEOUT = 0.2
"""Seconds for requests that run when the agent stops; the runtime tries them again."""


@contextlib.asynccontextmanager
async def serve_plugin(
    directory: str, plugin: Plugin[N], on_answer: Callable[[int], None] = lambda _: None
) -> AsyncIterator[None]:
    """Serve ``pluginevent.sock`` and ``log.sock`` in `directory`, to root alone.

    `on_answer` is called with the HTTP status of each answer to a request of the plugin.
    Raises ``OSError`` where a socket cannot be had.
    """
    requests = application(_BOUNDS)

    async def tell(_: web.Request, response: web.StreamResponse) -> None:
        on_answer(response.status)

    requests.on_response_prepare.append(tell)
    requests.router.add_post("/cni", partial(_call, plugin))
    requests.router.add_post("/cmdadd", partial(_istio_add, plugin))
    logs = application(_BOUNDS)
    logs.router.add_post("/log", _log)
    async with (
        _serve(os.path.join(directory, "pluginevent.sock"), requests),
        _serve(os.path.join(directory, "log.sock"), logs),
    ):
        yield


def _is_root(connected: socket.socket) -> bool:
    credentials = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    pid, uid, _ = struct.unpack("iII", credentials)
    if uid != ROOT_UID:
        log.warning("refused a peer", pid=pid, uid=uid)
    return bool(uid == ROOT_UID)


@contextlib.asynccontextmanager
async def _serve(path: str, app: web.Application) -> AsyncIterator[None]:
    name = os.path.basename(path)
    with listening(path, socket.SOCK_STREAM, setting="CNI_AGENT_RUN_DIR") as listener:
        async with serve_http(
            [listener], app, _BOUNDS, name=name, may_ask=_is_root, stop_timeout=_STOP_TIMEOUT
        ):
            yield


async def _call(plugin: Plugin[N], request: web.Request) -> web.Response:
    try:
        answer = await plugin.call(await _body(request))
    except CniError as error:
        log.warning("no plugin request", reason=str(error))
        answer = Answer(success=False, body=result.failure(error, NEWEST))
    return web.Response(
        status=200 if answer.success else 500, text=answer.body, content_type="application/json"
    )


async def _istio_add(plugin: Plugin[N], request: web.Request) -> web.Response:
    try:
        await plugin.istio_add(await _body(request))
    except CniError as error:
        log.warning("request of Istio's plugin failed", reason=str(error))
        return web.Response(status=500, text=str(error))
    return web.Response(text="ok")


async def _log(request: web.Request) -> web.Response:
    try:
        plugin_log.print_lines(plugin_log.parse(await _body(request)))
    except (CniError, ValueError) as error:
        return web.Response(status=400, text=str(error))
    return web.Response(text="ok")


async def _body(request: web.Request) -> bytes:
    try:
        async with asyncio.timeout(BODY_DEADLINE):
            return await request.read()
    except web.HTTPRequestEntityTooLarge as error:
        raise CniError(Code.INVALID_JSON, f"a request of more than {MAX_BODY} bytes") from error
    except TimeoutError as error:
        raise CniError(
            Code.TRY_AGAIN, f"the request was not complete after {BODY_DEADLINE:g} s"
        ) from error
