"""What the agent tells of itself, over HTTP.

Kubelet asks for readiness and liveness on a TCP port; ``nodeagent status`` asks for the same
and for the workloads at a Unix socket of the agent's own user.
"""

import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType

from aiohttp import web

from nodeagent.http_listener import Bounds, application, serve_http
from nodeagent.linux.unix_sockets import listening, listening_on_network

_PROBES = Bounds(connections=256, seconds=5)
"""Kubelet opens one connection for each probe, and waits for a second. Any pod can connect."""
_ADMIN = Bounds(connections=64, seconds=10)
"""Clients of the agent's own user. The answer for ten thousand pods has some megabytes."""

Workloads = Callable[[], list[dict[str, object]]]
"""The workloads as JSON values."""
Answer = Callable[[str], Awaitable[object]]
"""Answers one question about the pod with this UID, or about all where it is empty.

The answer is a JSON value; None: no such pod is known any more."""
Missing = Callable[[], Sequence[str]]
"""What keeps the agent from being ready, in words; empty when it is ready."""


def _health(missing: Missing, bounds: Bounds) -> web.Application:
    """Answer ``/readyz`` and ``/healthz``."""

    async def get_readyz(_: web.Request) -> web.Response:
        if reasons := missing():
            return web.Response(status=503, text=f"not ready: {'; '.join(reasons)}\n")
        return web.Response(text="ready\n")

    async def get_healthz(_: web.Request) -> web.Response:
        # An agent that answers is alive. Were readiness asked for here, kubelet would kill an
        # agent that waits for others, and the next one too.
        return web.Response(text="alive\n")

    app = application(bounds)
    app.router.add_get("/readyz", get_readyz)
    app.router.add_get("/healthz", get_healthz)
    return app


@contextlib.asynccontextmanager
async def serve_admin(
    path: str,
    *,
    workloads: Workloads,
    missing: Missing,
    answers: Mapping[str, Answer] = MappingProxyType({}),
) -> AsyncIterator[None]:
    """Serve on the Unix socket `path`, which only the agent's own user may use.

    `answers` has what is answered at ``/NAME`` and ``/NAME?uid=UID``.
    A socket that an earlier agent left there is replaced. Raises ``OSError``.
    """

    async def get_workloads(_: web.Request) -> web.Response:
        return web.json_response(workloads())

    app = _health(missing, _ADMIN)
    app.router.add_get("/workloads", get_workloads)
    for name, answer in answers.items():
        app.router.add_get(f"/{name}", partial(_get_answer, answer))
    with listening(path, socket.SOCK_STREAM, setting="CNI_AGENT_RUN_DIR") as listener:
        async with serve_http([listener], app, _ADMIN, name="admin"):
            yield


async def _get_answer(answer: Answer, request: web.Request) -> web.Response:
    value = await answer(request.query.get("uid", ""))
    if value is None:
        return web.Response(status=410, text="no such pod is known any more\n")
    return web.json_response(value)


@contextlib.asynccontextmanager
async def serve_health(address: str, *, missing: Missing) -> AsyncIterator[None]:
    """Serve kubelet's probes on `address` (``[HOST]:PORT``). Raises ``OSError``."""
    with listening_on_network(address, setting="READINESS_ADDRESS") as listeners:
        async with serve_http(listeners, _health(missing, _PROBES), _PROBES, name="probes"):
            yield
