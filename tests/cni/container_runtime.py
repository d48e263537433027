"""What the agent's plugin server sees of a container runtime, over the model of the heart."""

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ParamSpec, TypeVar
from unittest import mock

from nodeagent.cni.admission import Admission
from nodeagent.cni.let_through import DaemonPods, LetThrough
from nodeagent.cni.plugin import Plugin
from nodeagent.cni.server import serve_plugin
from nodeagent.mesh.eligibility import Policy
from nodeagent.mesh.errors import RetryError
from nodeagent.mesh.pod import Namespace, Pod
from nodeagent.observer import NOBODY, Observer
from tests.eventually import PATIENCE, eventually
from tests.mesh.node import Bench, Node, bench
from tests.mesh.pods import SHOP, a_pod

TRY_AGAIN = 11
DIFFERS = 100

T = TypeVar("T")
P = ParamSpec("P")


@dataclass(frozen=True)
class Reply:
    """What the binary would print, and whether it would exit with 0."""

    success: bool
    text: str

    @property
    def code(self) -> int:
        assert not self.success, self.text
        return int(json.loads(self.text)["code"])

    @property
    def message(self) -> str:
        error = json.loads(self.text)
        return f"{error['msg']}: {error.get('details', '')}"


@dataclass
class ApiServer:
    """What the API server has, and whether it can be reached."""

    pods: list[Pod] = field(default_factory=list)
    namespaces: dict[str, Namespace] = field(default_factory=dict)
    away: bool = False
    asked: list[str] = field(default_factory=list)
    may_answer: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.may_answer.set()

    async def pod(self, namespace: str, name: str) -> Pod | None:
        matching = (pod for pod in self.pods if (pod.namespace, pod.name) == (namespace, name))
        return await self._answer(f"{namespace}/{name}", next(matching, None))

    async def namespace(self, name: str) -> Namespace | None:
        return await self._answer(name, self.namespaces.get(name))

    async def _answer(self, asked: str, answer: T) -> T:
        self.asked.append(asked)
        await self.may_answer.wait()
        if self.away:
            raise RetryError("the API server does not answer")
        return answer


def body(command: str, config: dict[str, Any] | str | bytes, **variables: str) -> bytes:
    """Put a request together as the binary does."""
    variables = {"CNI_COMMAND": command, **variables}
    environment = "".join(f"{name}={value}\0" for name, value in variables.items())
    if isinstance(config, dict):
        config = json.dumps(config)
    stdin = config if isinstance(config, bytes) else config.encode()
    return environment.encode() + b"\0" + stdin


class Runtime:
    """Calls the plugin, each time over a connection of its own."""

    def __init__(self, directory: Path, on: Bench, api: ApiServer) -> None:
        self.directory = directory
        self.on = on
        self.api = api
        self.missing: list[str] = []
        self.gone: set[str] = set()
        self.hidden: set[str] = set()
        self.waiting = 0
        """Requests that wait for the table to hear of a pod, or of all that there is."""

    def counting(self, until: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
        """Count those who wait for `until` in `waiting`."""

        async def counted(*args: P.args, **keywords: P.kwargs) -> T:
            self.waiting += 1
            try:
                return await until(*args, **keywords)
            finally:
                self.waiting -= 1

        return counted

    def identify(self, netns: str) -> int:
        if netns in self.gone:
            raise FileNotFoundError(netns)
        if netns in self.hidden:
            raise PermissionError(netns)
        return int(os.path.basename(netns))

    async def post(self, path: str, data: bytes, sock: str = "pluginevent.sock") -> Reply:
        request = (
            b"POST %b HTTP/1.1\r\nHost: agent\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
        )
        # Connecting waits for room in the backlog only where it may block.
        reader, writer = await asyncio.open_unix_connection(
            sock=await asyncio.to_thread(connected, str(self.directory / sock))
        )
        with contextlib.closing(writer):
            writer.write(request % (path.encode(), len(data)) + data)
            head, _, text = (await reader.read()).partition(b"\r\n\r\n")
            return Reply(head.startswith(b"HTTP/1.1 200 "), text.decode())

    async def call(
        self,
        command: str,
        *,
        container: str = "c1",
        netns: int = 1,
        name: str = "web",
        namespace: str = "shop",
        uid: str | None = "1",
        ifname: str = "eth0",
        config: Mapping[str, Any] | None = None,
    ) -> Reply:
        arguments = {"K8S_POD_NAMESPACE": namespace, "K8S_POD_NAME": name, "K8S_POD_UID": uid}
        return await self.post(
            "/cni",
            body(
                command,
                {"cniVersion": "1.0.0", "name": "net", **(config or {})},
                CNI_CONTAINERID=container,
                CNI_NETNS=f"/run/netns/{netns}",
                CNI_IFNAME=ifname,
                CNI_ARGS=";".join(f"{key}={value}" for key, value in arguments.items() if value),
            ),
        )

    async def add(self, address: str = "10.0.0.1", **changes: Any) -> Reply:
        ips = [{"address": f"{address}/24", "interface": 0}] if address else []
        previous = {"cniVersion": "1.0.0", "ips": ips}
        return await self.call("ADD", **changes, config={"prevResult": previous})

    async def delete(self, **changes: Any) -> Reply:
        return await self.call("DEL", **changes)


def known(runtime: Runtime, uid: str = "1", **changes: object) -> None:
    """Let the watch tell of a mesh pod that has no address yet."""
    runtime.on.table.namespace_seen(SHOP)
    runtime.on.table.pod_seen(replace(a_pod(uid, addresses=()), **changes))  # type: ignore[arg-type]


async def until_handed_over(runtime: Runtime, container: str = "c1", uid: str = "1") -> None:
    """Wait until the pod's workload has the sandbox of `container`."""

    def handed_over() -> bool:
        sandbox = runtime.on.workload(uid).sandbox
        return sandbox is not None and sandbox.container_id == container

    await eventually(handed_over)


def istio_request(address: str = "10.0.0.1", **changes: object) -> bytes:
    """Make what Istio's plugin posts for an ADD."""
    ips = [
        {"Interface": 0, "Address": {"IP": address, "Mask": "////AA=="}, "Gateway": "10.0.0.254"}
    ]
    request = {"Netns": "/run/netns/1", "PodName": "web", "PodNamespace": "shop", "IPs": ips}
    return json.dumps({**request, **changes}).encode()


def connected(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(path)
    return sock


@contextlib.asynccontextmanager
async def serving(
    directory: Path,
    node: Node | None = None,
    *,
    in_sync: bool = True,
    deadline: float = PATIENCE,
    folder: bool = False,
    removal_grace: float = 0,
    observer: Observer = NOBODY,
) -> AsyncIterator[Runtime]:
    """Serve the plugin over a heart; `folder`: pods come from manifests, no API is there."""
    api = ApiServer()
    async with bench(node or Node(), removal_grace=removal_grace) as on:
        runtime = Runtime(directory, on, api)
        if in_sync:
            on.table.synced()
        admission = Admission(
            on.table,
            Policy(),
            let_through=LetThrough(
                agent=DaemonPods(namespace="istio-system", prefix="nodeagent-"),
                ztunnel=DaemonPods(namespace="istio-system", prefix="ztunnel-"),
                namespaces=frozenset({"control"}),
            ),
            identify=runtime.identify,
            inspect=on.node.inspect,
            missing=lambda: runtime.missing,
            lookup=None if folder else api.pod,
            lookup_namespace=None if folder else api.namespace,
            deadline=deadline,
        )
        plugin = Plugin(on.table, admission, identify=runtime.identify, observer=observer)
        with (
            mock.patch.object(on.table, "until", runtime.counting(on.table.until)),
            mock.patch.object(on.table, "until_synced", runtime.counting(on.table.until_synced)),
        ):
            async with serve_plugin(str(directory), plugin):
                yield runtime


@contextlib.contextmanager
def descriptors_are_given_back() -> Iterator[None]:
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert len(os.listdir("/proc/self/fd")) == before
