"""A node as in a cluster: a container runtime, the agent in its CNI chain, and a ztunnel."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import grpc.aio

from nodeagent.admin.client import Workload, fetch_workloads
from nodeagent.config import Settings
from nodeagent.mesh.pod import IPAddress
from tests.agent.processes import AMBIENT, Node, Stub
from tests.capabilities import granted
from tests.eventually import PATIENCE, eventually
from tests.runtime.containerd import Containerd

OUTSIDE: Mapping[str, str] = {}


class MeshNode:
    """Plays kubelet; the pods' manifests name no namespace and no address."""

    def __init__(self, directory: Path, containerd: Containerd) -> None:
        self.containerd = containerd
        self.agent = Node(
            directory,
            cni_net_dir=str(containerd.net_dir),
            cni_bin_dir=str(containerd.bin_dir),
            cni_let_through_namespaces="control",
            container_runtime_endpoint=containerd.endpoint,
        )
        # The tests have more than the manifest gives (L43).
        self.agent.grant = granted()
        self.stubs: list[Stub] = []

    @property
    def settings(self) -> Settings:
        return self.agent.settings

    async def start_agent(self) -> None:
        """Start the agent; returns when the runtime has it in its chain."""
        self.agent.start()
        async with asyncio.timeout(PATIENCE):
            while b'\\"type\\":\\"nodeagent\\"' not in (await self._chain()).replace(b" ", b""):
                assert self.agent.process.is_alive(), self.agent.log.read_text()
                await asyncio.sleep(0.01)

    async def start_ztunnel(self) -> Stub:
        stub = Stub(self.agent)
        self.stubs.append(stub)
        return stub

    async def run(
        self, name: str, namespace: str = "shop", labels: Mapping[str, str] = AMBIENT
    ) -> str:
        """Have kubelet hear of a pod, and make its sandbox. Returns the sandbox's id."""
        self.know(name, namespace, labels)
        return await self.containerd.run_sandbox(name, namespace, f"uid-{name}")

    def know(self, name: str, namespace: str = "shop", labels: Mapping[str, str] = AMBIENT) -> None:
        metadata = {
            "name": name,
            "namespace": namespace,
            "uid": f"uid-{name}",
            "labels": dict(labels),
        }
        draft = self.agent.manifests / f".{name}"
        draft.write_text(json.dumps({"apiVersion": "v1", "kind": "Pod", "metadata": metadata}))
        draft.rename(self.agent.manifests / f"{name}.json")

    async def refused(self, name: str, namespace: str = "shop") -> str:
        """What kubelet is told of a pod that does not start."""
        try:
            await self.run(name, namespace)
        except grpc.aio.AioRpcError as error:
            return error.details() or ""
        raise AssertionError(f"{name} started")

    async def run_until_it_starts(self, name: str) -> str:
        """Try again as kubelet does."""
        async with asyncio.timeout(PATIENCE):
            while True:
                with contextlib.suppress(grpc.aio.AioRpcError):
                    return await self.run(name)

    async def server(self, name: str = "server") -> IPAddress:
        """Start a pod outside the mesh that answers on port 80."""
        sandbox = await self.run(name, labels=OUTSIDE)
        await self.containerd.run_container(sandbox, "listen", "80")
        return (await self.containerd.addresses(sandbox))[0]

    async def dial(self, sandbox: str, address: IPAddress) -> None:
        """Connect from a new process in the pod, once the server is there."""
        async with asyncio.timeout(PATIENCE):
            while True:
                with contextlib.suppress(AssertionError):
                    await self.containerd.dial(sandbox, address, 80)
                    return

    def row(self, name: str) -> Workload | None:
        rows = fetch_workloads(self.settings.admin_socket)
        return next((row for row in rows if row["name"] == name), None)

    async def until_not_held(self, name: str) -> None:
        """Wait until the agent has let go of the pod's namespace."""

        def let_go() -> bool:
            row = self.row(name)
            return row is None or row["netns"] is None

        await eventually(let_go)

    async def close(self) -> None:
        """End it all; with the agent still there, the pods end quickly."""
        remove = self.containerd.remove_sandbox
        await asyncio.gather(*map(remove, await self.containerd.sandboxes()))
        if self.agent.process is not None:
            await self.agent.kill()
        for stub in self.stubs:
            await stub.stop()

    async def _chain(self) -> bytes:
        """What the runtime says of itself, its CNI configuration included."""
        async with grpc.aio.insecure_channel(f"unix:{self.containerd.endpoint}") as channel:
            call = channel.unary_unary("/runtime.v1.RuntimeService/Status")
            answer: bytes = await call(b"\x08\x01", timeout=PATIENCE)  # verbose
            return answer


@contextlib.asynccontextmanager
async def mesh_node(directory: Path, containerd: Containerd) -> AsyncIterator[MeshNode]:
    node = MeshNode(directory, containerd)
    try:
        yield node
    finally:
        await node.close()
