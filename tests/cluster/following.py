"""Someone who follows a pod source, and what was told so far."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

from nodeagent.cluster.api import ApiServer
from nodeagent.cluster.cluster_pods import ClusterPods
from nodeagent.cluster.source import (
    NamespaceGone,
    NamespaceSeen,
    PodEvent,
    PodGone,
    PodSeen,
    Synced,
)
from nodeagent.mesh.pod import Namespace, Pod, PodUID
from tests.eventually import eventually


class Told:
    """The world as the events have it."""

    def __init__(self) -> None:
        self.events: list[PodEvent] = []
        self.pods: dict[PodUID, Pod] = {}
        self.namespaces: dict[str, Namespace] = {}
        self.synced = False

    def take(self, event: PodEvent) -> None:
        self.events.append(event)
        match event:
            case PodSeen(pod):
                self.pods[pod.uid] = pod
            case PodGone(uid):
                del self.pods[uid]
            case NamespaceSeen(namespace):
                self.namespaces[namespace.name] = namespace
            case NamespaceGone(name):
                del self.namespaces[name]
            case Synced():
                assert not self.synced
                self.synced = True

    async def listen(self, events: AsyncIterator[PodEvent]) -> None:
        async for event in events:
            self.take(event)

    def names(self) -> list[str]:
        return sorted(pod.name for pod in self.pods.values())

    async def has(self, *names: str) -> None:
        """Wait until these are the pods."""
        try:
            await eventually(lambda: self.names() == sorted(names))
        except TimeoutError:
            raise AssertionError(f"{self.names()}, not {sorted(names)}") from None


@contextlib.asynccontextmanager
async def connected(kubeconfig: str) -> AsyncIterator[ApiServer]:
    """An API server for the length of the block, after which no connection is left."""
    with open(kubeconfig) as file:
        port = urlsplit(json.load(file)["clusters"][0]["cluster"]["server"]).port
    assert port
    before = _open_connections(port)
    async with ApiServer.connect(kubeconfig) as api:
        yield api
    # TLS ends with a farewell in both directions, and asyncio waits for it alone.
    await eventually(lambda: _open_connections(port) <= before)


@contextlib.asynccontextmanager
async def following(
    kubeconfig: str, node_name: str, *, silence: float = 30, synced: bool = True
) -> AsyncIterator[Told]:
    """Follow for the length of the block, which begins when all was told that was there."""
    told = Told()

    async def follow(api: ApiServer) -> None:
        source = ClusterPods(api, node_name, silence=silence)
        async with contextlib.aclosing(source.events()) as events:
            await told.listen(events)

    async with connected(kubeconfig) as api:
        task = asyncio.create_task(follow(api), name="following")
        try:
            if synced:
                await eventually(lambda: told.synced or task.done())
            yield told
        finally:
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled() and (error := task.exception()):
                raise error


def _open_connections(port: int) -> set[str]:
    """Those to the port that a descriptor stands for."""
    with open("/proc/self/net/tcp") as file:
        rows = [line.split() for line in file][1:]
    return {row[1] for row in rows if row[2].endswith(f":{port:04X}") and row[9] != "0"}
