"""What the agent says about itself, over HTTP."""

import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Sequence

from aiohttp import web

from nodeagent.sockets import listening

Workloads = Callable[[], list[dict[str, object]]]
"""The rows of the table as JSON values."""
Missing = Callable[[], Sequence[str]]
"""What keeps the agent from being ready, in words; empty when it is."""


def _health(missing: Missing) -> web.Application:
    """Answer ``/readyz`` and ``/healthz``."""

    async def get_readyz(_: web.Request) -> web.Response:
        if reasons := missing():
            return web.Response(status=503, text=f"not ready: {'; '.join(reasons)}\n")
        return web.Response(text="ready\n")

    async def get_healthz(_: web.Request) -> web.Response:
        # That it answers is the answer: an agent that is killed for not being
        # ready would never get ready.
        return web.Response(text="alive\n")

    app = web.Application()
    app.router.add_get("/readyz", get_readyz)
    app.router.add_get("/healthz", get_healthz)
    return app


@contextlib.asynccontextmanager
async def serve_admin(path: str, *, workloads: Workloads, missing: Missing) -> AsyncIterator[None]:
    """Serve on the Unix socket `path`, which only the agent's own user may use.

    A socket that an earlier agent left there is replaced. Raises ``OSError``.
    """

    async def get_workloads(_: web.Request) -> web.Response:
        return web.json_response(workloads())

    app = _health(missing)
    app.router.add_get("/workloads", get_workloads)
    runner = web.AppRunner(app, access_log=None)
    with listening(path, socket.SOCK_STREAM, setting="CNI_AGENT_RUN_DIR") as listener:
        await runner.setup()
        try:
            await web.SockSite(runner, listener).start()
            yield
        finally:
            await runner.cleanup()


@contextlib.asynccontextmanager
async def serve_health(address: str, *, missing: Missing) -> AsyncIterator[None]:
    """Serve kubelet's probes on `address` (``[HOST]:PORT``). Raises ``OSError``."""
    host, _, port = address.rpartition(":")
    runner = web.AppRunner(_health(missing), access_log=None)
    await runner.setup()
    try:
        await _start(web.TCPSite(runner, host.strip("[]") or None, int(port)), address)
        yield
    finally:
        await runner.cleanup()


async def _start(site: web.TCPSite, address: str) -> None:
    try:
        await site.start()
    except OSError as error:
        raise OSError(
            error.errno, f"cannot listen on {address} (READINESS_ADDRESS): {error.strerror}"
        ) from error
