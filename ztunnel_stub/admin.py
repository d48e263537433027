"""The HTTP endpoints: what is served, and whether the stub is ready."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from ztunnel_stub.address import Endpoint
from ztunnel_stub.connection import Direction
from ztunnel_stub.workload import Workload
from ztunnel_stub.workloads import Workloads


class AdminError(Exception):
    """An endpoint cannot be opened."""


@asynccontextmanager
async def admin(workloads: Workloads, address: str) -> AsyncIterator[None]:
    """Serve ``/config_dump`` on `address` meanwhile. Raises ``AdminError``."""

    async def config_dump(_: web.Request) -> web.Response:
        return web.json_response({"workloadState": workload_state(workloads)})

    async with _serve("/config_dump", config_dump, address):
        yield


@asynccontextmanager
async def readiness(workloads: Workloads, address: str) -> AsyncIterator[None]:
    """Serve ``/healthz/ready`` on `address` meanwhile. Raises ``AdminError``."""

    async def ready(_: web.Request) -> web.Response:
        if workloads.ready:
            return web.Response(text="ready\n")
        return web.Response(status=503, text="not ready\n")

    async with _serve("/healthz/ready", ready, address):
        yield


def workload_state(workloads: Workloads) -> dict[str, Any]:
    """By UID, in the form of ztunnel's own dump."""
    return {
        **_states(workloads.running, "Up"),
        **_states(workloads.pending, "Pending"),
    }


def _states(workloads: Mapping[str, Workload], state: str) -> dict[str, Any]:
    return {
        uid: {
            "state": state,
            "connections": _connections(workload),
            "info": {
                "name": workload.info.name,
                "namespace": workload.info.namespace,
                "serviceAccount": workload.info.service_account,
            },
            "netns": workload.netns.inode,
        }
        for uid, workload in workloads.items()
    }


def _connections(workload: Workload) -> dict[str, list[dict[str, str]]]:
    dump: dict[str, list[dict[str, str]]] = {direction.value: [] for direction in Direction}
    for connection in workload.connections:
        dump[connection.direction.value].append(
            {"src": str(connection.source), "originalDst": str(connection.destination)}
        )
    return dump


@asynccontextmanager
async def _serve(path: str, handler: Any, address: str) -> AsyncIterator[None]:
    if not address:
        yield
        return
    application = web.Application()
    application.router.add_get(path, handler)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=1)
    await runner.setup()
    try:
        try:
            await _site(runner, address).start()
        except OSError as error:
            raise AdminError(f"cannot listen on {address}: {error.strerror}") from error
        yield
    finally:
        await runner.cleanup()


def _site(runner: web.AppRunner, address: str) -> web.BaseSite:
    if address.startswith("unix:"):
        return web.UnixSite(runner, address.removeprefix("unix:"))
    endpoint = Endpoint.parse(address)
    # Old and new stub of a rolling update both run for a while.
    return web.TCPSite(runner, endpoint.host, endpoint.port, reuse_port=True)
