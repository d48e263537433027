"""A node of a cluster, of which the tests are kubelet and the controllers."""

import asyncio
import contextlib
import itertools
import json
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import grpc.aio

from nodeagent.admin.client import NoAgentError, Workload, fetch_workloads
from nodeagent.mesh.pod import REDIRECTION
from tests.agent.processes import AMBIENT, Stub
from tests.capabilities import granted
from tests.cluster.client import AnswerError, Object
from tests.cluster.control_plane import ControlPlane
from tests.cluster.manifests import ACCOUNT, NAMESPACE
from tests.cluster.proxy import FaultProxy
from tests.eventually import PATIENCE, eventually
from tests.node.agent import AgentProcess
from tests.node.pod import Pod
from tests.runtime.containerd import Containerd

OUTSIDE: Mapping[str, str] = {}
MODE = "istio.io/dataplane-mode"
LINUX = {"kubernetes.io/os": "linux"}
WAITS = "This pod waits for it"
"""Of the agent, says the plugin's binary to kubelet where there is none."""
_numbers = itertools.count(1)


class Node:
    """The agent has the token of its own ServiceAccount, and reaches the API through `proxy`."""

    def __init__(
        self,
        directory: Path,
        control_plane: ControlPlane,
        *,
        proxy: FaultProxy,
        containerd: Containerd,
        shop: str,
        name: str,
    ) -> None:
        self.admin = control_plane.admin
        self.proxy = proxy
        self.containerd = containerd
        self.shop = shop
        self.name = name
        # As kubelet gives it to the agent's pod: it is good for this node.
        own = {"serviceAccountName": ACCOUNT}
        control_plane.admin.make_pod(NAMESPACE, pod := f"of-{name}", node=name, spec=own)
        token = control_plane.token_for(NAMESPACE, ACCOUNT, pod=pod)
        self.agent = AgentProcess(
            directory,
            kubeconfig=control_plane.kubeconfig(
                directory / "kubeconfig", token=token, server=proxy.url
            ),
            node_name=name,
            container_runtime_endpoint=containerd.endpoint,
            cni_net_dir=str(containerd.net_dir),
            cni_bin_dir=str(containerd.bin_dir),
        )
        # The tests have more than the manifest gives (L43).
        self.agent.grant = granted()
        self.stubs: list[Stub] = []

    async def start(self) -> Stub:
        """Start the agent and a ztunnel; returns when the runtime has the agent in its chain."""
        stub = self.start_ztunnel()
        await self.start_agent()
        return stub

    async def start_agent(self) -> None:
        """Start the agent; returns when it is ready, and the runtime has seen its chain."""
        self.agent.start()
        await self.agent.until_ready()
        if "cni_net_dir" in self.agent.flags:
            await self.until_chained()

    def start_ztunnel(self) -> Stub:
        """Start one more ztunnel; it connects as soon as there is an agent."""
        stub = Stub(self.agent)
        self.stubs.append(stub)
        return stub

    async def stop_ztunnel(self, stub: Stub) -> None:
        self.stubs.remove(stub)
        await stub.stop()

    def sent(self, pod: Pod) -> int:
        """How many connections of the pod have ended that went out through a ztunnel."""
        with open(f"{self.agent.log}.stub") as lines:
            ended = [json.loads(line) for line in lines if "connection ended" in line]
        return sum((one["uid"], one["direction"]) == (pod.uid, "outbound") for one in ended)

    async def until_chained(self) -> None:
        """Wait until the runtime has read a configuration with our plugin in it."""
        async with asyncio.timeout(PATIENCE):
            while not await self._is_chained():  # noqa: ASYNC110 - nothing tells us
                await asyncio.sleep(0.01)

    async def reboot(self) -> None:
        """End the agent, every ztunnel and every sandbox; the API keeps what it knows."""
        await self.agent.kill()
        for stub in list(self.stubs):
            await self.stop_ztunnel(stub)
        await self.containerd.clear()

    def chain(self) -> list[str]:
        """The types of the plugins that the runtime has in its chain, in their order."""
        first = min(self.containerd.net_dir.glob("*.conf*"))
        return [plugin["type"] for plugin in json.loads(first.read_text())["plugins"]]

    def without_plugin(self) -> None:
        """Have the next agent be one that hears of pods from the API alone."""
        del self.agent.flags["cni_net_dir"]

    def register(self, *taints: Object, grace: int = 30) -> str:
        """Make the Node object, and the pod in which the next agent runs. Returns its UID.

        `grace`: the seconds that kubelet gives that pod to stop.
        """
        node = {"metadata": {"name": self.name, "labels": LINUX}, "spec": {"taints": taints}}
        self.admin.post("/api/v1/nodes", node)
        daemonset = self.admin.get(f"/apis/apps/v1/namespaces/{NAMESPACE}/daemonsets/{ACCOUNT}")
        owner = {
            "apiVersion": "apps/v1",
            "kind": "DaemonSet",
            "name": ACCOUNT,
            "uid": daemonset["metadata"]["uid"],
            "controller": True,
        }
        name = f"{ACCOUNT}-{self.name.removeprefix('node-'):0>5}"
        spec = {"terminationGracePeriodSeconds": grace}
        made = self.admin.make_pod(NAMESPACE, name, node=self.name, spec=spec)
        self.admin.patch(
            f"/api/v1/namespaces/{NAMESPACE}/pods/{name}",
            {"metadata": {"ownerReferences": [owner]}},
        )
        self.agent.flags |= {"pod_name": name, "pod_namespace": NAMESPACE}
        uid: str = made["metadata"]["uid"]
        return uid

    def make(
        self,
        name: str,
        *,
        namespace: str = "",
        labels: Mapping[str, str] = AMBIENT,
        annotations: Mapping[str, str] | None = None,
        spec: Mapping[str, object] | None = None,
    ) -> str:
        """Have the API know a pod of this node, which does not run yet. Returns its UID."""
        made = self.admin.make_pod(
            namespace or self.shop,
            name,
            node=self.name,
            labels=labels,
            annotations=annotations,
            phase="Pending",
            spec=spec,
        )
        uid: str = made["metadata"]["uid"]
        return uid

    async def sandbox(self, name: str, uid: str, *, namespace: str = "", known_as: str = "") -> Pod:
        """Make a sandbox, and tell the API nothing. `known_as`: the runtime's UID for it.

        Raises ``grpc.aio.AioRpcError`` where the chain refuses.
        """
        namespace = namespace or self.shop
        sandbox = await self.containerd.run_sandbox(name, namespace, known_as or uid)
        return Pod(
            name=name,
            namespace=namespace,
            uid=uid,
            sandbox=sandbox,
            netns=await self.containerd.netns(sandbox),
            addresses=await self.containerd.addresses(sandbox),
        )

    async def run(
        self,
        name: str,
        *,
        namespace: str = "",
        labels: Mapping[str, str] = AMBIENT,
        annotations: Mapping[str, str] | None = None,
        known_as: str = "",
    ) -> Pod:
        """A pod from its making to its running, as the API has it."""
        uid = self.make(name, namespace=namespace, labels=labels, annotations=annotations)
        pod = await self.sandbox(name, uid, namespace=namespace, known_as=known_as)
        self.say(pod)
        return pod

    def say(self, pod: Pod, *, phase: str = "Running") -> None:
        """Write the pod's status, as kubelet does after the sandbox is there."""
        addresses = [str(address) for address in pod.addresses]
        self.admin.set_pod_status(pod.namespace, pod.name, addresses=addresses, phase=phase)

    async def again(self, name: str, uid: str) -> Pod:
        """Try to make the sandbox until it is there, as kubelet does."""
        async with asyncio.timeout(PATIENCE):
            while True:
                with contextlib.suppress(grpc.aio.AioRpcError):
                    return await self.sandbox(name, uid)

    async def refused(self, name: str, uid: str, *, namespace: str = "") -> str:
        """What kubelet is told of a pod that does not start."""
        try:
            await self.sandbox(name, uid, namespace=namespace)
        except grpc.aio.AioRpcError as error:
            return error.details() or ""
        raise AssertionError(f"{name} started")

    async def end(self, pod: Pod) -> None:
        """End the pod, and have the API forget it."""
        await self.containerd.remove_sandbox(pod.sandbox)
        self.forget(pod)

    def delete(self, pod: Pod, *, grace: int) -> None:
        """Have the pod end within `grace` seconds; it exists until `forget`."""
        self.admin.delete(pod.path, grace=grace)

    def forget(self, pod: Pod) -> None:
        self.admin.delete(pod.path, grace=0)

    def label(self, pod: Pod, labels: Mapping[str, str | None]) -> None:
        self.admin.patch(pod.path, {"metadata": {"labels": dict(labels)}})

    def label_shop(self, labels: Mapping[str, str | None]) -> None:
        """The labels of the namespace."""
        path = f"/api/v1/namespaces/{self.shop}"
        self.admin.patch(path, {"metadata": {"labels": dict(labels)}})

    def annotation(self, pod: Pod) -> str | None:
        """What the cluster is told of the pod's redirection; None also where it is gone."""
        try:
            metadata = self.admin.get(pod.path)["metadata"]
        except AnswerError:
            return None
        value: str | None = metadata.get("annotations", {}).get(REDIRECTION)
        return value

    def events(self, reason: str) -> list[str]:
        """The names of the pods that have an event with this reason."""
        found = self.admin.get(f"/api/v1/namespaces/{self.shop}/events")["items"]
        return [each["involvedObject"]["name"] for each in found if each["reason"] == reason]

    def row(self, uid: str) -> Workload | None:
        """What the running agent says of the pod, if it answers and knows it."""
        with contextlib.suppress(NoAgentError):
            rows = fetch_workloads(self.agent.settings.admin_socket)
            return next((row for row in rows if row["uid"] == uid), None)
        return None

    async def until(self, uid: str, condition: Callable[[Workload], bool]) -> Workload:
        """Wait until the agent says of the pod what `condition` asks for."""
        seen: list[Workload | None] = []

        def look() -> bool:
            seen.append(self.row(uid))
            return seen[-1] is not None and condition(seen[-1])

        await self._wait(look, lambda: f"{seen[-1]}")
        assert seen[-1] is not None
        return seen[-1]

    async def until_state(self, uid: str, state: str) -> Workload:
        return await self.until(uid, lambda row: row["state"] == state)

    async def until_annotated(self, pod: Pod, value: str | None) -> None:
        await self._wait(
            lambda: self.annotation(pod) == value, lambda: f"{self.annotation(pod)}, not {value}"
        )

    async def until_known(self, uid: str) -> None:
        """Wait until the agent has heard of the pod."""
        await self._wait(lambda: self.row(uid) is not None, lambda: "not heard of")

    async def until_heard(self) -> None:
        """Wait until the agent has heard of everything that happened to pods so far."""
        await self.until_known(self.make(f"last-{next(_numbers)}", labels=OUTSIDE))

    async def until_let_go(self, uid: str) -> None:
        """Wait until the agent has nothing more to do with the pod."""
        await self._wait(
            lambda: (row := self.row(uid)) is None or row["netns"] is None,
            lambda: f"{self.row(uid)}",
        )

    async def close(self) -> None:
        await self.agent.close()
        for stub in self.stubs:
            await stub.stop()

    async def _wait(self, condition: Callable[[], bool], seen: Callable[[], str]) -> None:
        try:
            await eventually(condition)
        except TimeoutError:
            raise AssertionError(f"{seen()}\n{self.agent.log.read_text()}") from None

    async def _is_chained(self) -> bool:
        # What the runtime says of itself has its CNI configuration in it.
        async with grpc.aio.insecure_channel(f"unix:{self.containerd.endpoint}") as channel:
            call = channel.unary_unary("/runtime.v1.RuntimeService/Status")
            answer: bytes = await call(b"\x08\x01", timeout=PATIENCE)  # verbose
            return b'\\"type\\":\\"nodeagent\\"' in answer.replace(b" ", b"")


def host_rules() -> str:
    """What stands in the node's own network namespace, with handles: rules made anew differ."""
    command = ("nft", "-a", "-s", "list", "ruleset")
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
