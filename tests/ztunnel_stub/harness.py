"""The stub as a test runs it, and ways to look at it."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import aiohttp

from tests.descriptors import open_descriptors
from tests.eventually import PATIENCE
from tests.ztunnel_stub.pods import Pod
from ztunnel_stub.settings import Settings
from ztunnel_stub.stub import serve

Line = MutableMapping[str, Any]


class Stub:
    """Runs in the test's own loop."""

    _number = 0

    def __init__(self, inpod_uds: str, directory: str, settings: dict[str, Any]) -> None:
        Stub._number += 1
        self._admin = f"{directory}/admin{Stub._number}"
        self._readiness = f"{directory}/ready{Stub._number}"
        self._stop = asyncio.Event()
        chosen = Settings(
            **{
                "inpod_uds": inpod_uds,
                "admin_address": f"unix:{self._admin}",
                "readiness_address": f"unix:{self._readiness}",
                "drain_timeout": 0.05,
                "retry_interval": 0.05,
                **settings,
            }
        )
        self.task = asyncio.create_task(serve(chosen, self._stop), name="stub")

    async def stop(self) -> None:
        """As SIGTERM does; raises what the stub died of."""
        self.request_stop()
        await self.task

    def request_stop(self) -> None:
        """The same, without waiting for the end."""
        self._stop.set()

    async def ready(self) -> bool:
        status, _ = await _get(self._readiness, "/healthz/ready")
        assert status in {200, 503}
        return status == 200

    async def workloads(self) -> dict[str, Any]:
        """The admin endpoint's account, by UID."""
        status, body = await _get(self._admin, "/config_dump")
        assert status == 200
        state: dict[str, Any] = body["workloadState"]
        return state

    async def states(self) -> dict[str, str]:
        return {uid: workload["state"] for uid, workload in (await self.workloads()).items()}


StubFactory = Callable[..., Awaitable[Stub]]


class Logs:
    """What the stub has said."""

    def __init__(self, lines: list[Line]) -> None:
        self.lines = lines

    def connections(self) -> list[Line]:
        return [line for line in self.lines if line["event"] == "connection ended"]

    async def connection(self) -> Line:
        """The line of the only connection, once it has ended."""
        await eventually(lambda: bool(self.connections()))
        (line,) = self.connections()
        return line


async def eventually(condition: Callable[[], bool | Awaitable[bool]]) -> None:
    """Wait until `condition` holds."""
    async with asyncio.timeout(PATIENCE):
        while True:
            result = condition()
            if await result if isinstance(result, Awaitable) else result:
                return
            await asyncio.sleep(0.005)


def held(pod: Pod) -> int:
    """How many descriptors of this process hold the pod's namespace."""
    target = str(pod.netns.id)
    return sum(opened.endswith(target) for opened in open_descriptors())


async def _get(path: str, url: str) -> tuple[int, Any]:
    connector = aiohttp.UnixConnector(path)
    async with (
        aiohttp.ClientSession(connector=connector) as client,
        client.get(f"http://stub{url}") as response,
    ):
        if response.content_type == "application/json":
            return response.status, await response.json()
        return response.status, await response.text()
