"""Playing kubelet: asking a container runtime over CRI for pods and containers."""

import asyncio
import contextlib
import itertools
import json
import re
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Any, TypeVar

import grpc.aio
from google.protobuf.message import Message

from nodeagent.mesh.pod import IPAddress
from tests.eventually import PATIENCE
from tests.runtime import image, kubelet_pb2

M = TypeVar("M", bound=Message)


class Sandboxes:
    """The pod sandboxes of one runtime; their ids are the runtime's."""

    def __init__(self, endpoint: str, logs: Path, cgroup: str) -> None:
        """`logs`: a directory for the containers' output; `cgroup`: above all pods."""
        self.endpoint = endpoint
        """Path of the runtime's socket."""
        self._logs = logs
        self._above_pods = cgroup
        self._configs: dict[str, kubelet_pb2.PodSandboxConfig] = {}
        self._attempts = itertools.count()

    async def run_sandbox(
        self,
        name: str,
        namespace: str,
        uid: str,
        labels: Mapping[str, str] | None = None,
        annotations: Mapping[str, str] | None = None,
        *,
        host_network: bool = False,
        timeout: float = PATIENCE,  # noqa: ASYNC109 - the call's own deadline
    ) -> str:
        """Make a sandbox, its network by the CNI chain. Returns its id.

        Raises ``grpc.aio.AioRpcError`` where the runtime or the chain refuses.
        """
        config = kubelet_pb2.PodSandboxConfig(
            metadata=kubelet_pb2.PodSandboxMetadata(
                name=name, namespace=namespace, uid=uid, attempt=next(self._attempts)
            ),
            hostname="" if host_network else name,
            log_directory=str(self._logs),
            labels={
                **(labels or {}),
                "io.kubernetes.pod.name": name,
                "io.kubernetes.pod.namespace": namespace,
                "io.kubernetes.pod.uid": uid,
            },
            annotations=annotations or {},
            linux=kubelet_pb2.LinuxPodSandboxConfig(
                cgroup_parent=f"{self._above_pods}/kubepods/burstable/pod{uid}",
                security_context=kubelet_pb2.LinuxSandboxSecurityContext(
                    namespace_options=kubelet_pb2.NamespaceOption(
                        network=kubelet_pb2.NODE if host_network else kubelet_pb2.POD
                    )
                ),
            ),
        )
        answer = await self._call(
            "RunPodSandbox",
            kubelet_pb2.RunPodSandboxRequest(config=config),
            kubelet_pb2.RunPodSandboxResponse,
            timeout,
        )
        self._configs[answer.pod_sandbox_id] = config
        return answer.pod_sandbox_id

    async def stop_sandbox(self, sandbox: str) -> None:
        """End its processes and take its network down; idempotent, as kubelet relies on."""
        await self._ask("StopPodSandbox", kubelet_pb2.PodSandboxRequest(pod_sandbox_id=sandbox))

    async def remove_sandbox(self, sandbox: str) -> None:
        """Stop it, and let nothing of it remain."""
        await self.stop_sandbox(sandbox)
        await self._ask("RemovePodSandbox", kubelet_pb2.PodSandboxRequest(pod_sandbox_id=sandbox))

    async def sandboxes(self) -> list[str]:
        """Every sandbox that the runtime has, whoever made it."""
        answer = await self._call(
            "ListPodSandbox", kubelet_pb2.Empty(), kubelet_pb2.ListPodSandboxResponse
        )
        return [item.id for item in answer.items]

    async def addresses(self, sandbox: str) -> tuple[IPAddress, ...]:
        """Those that its CNI chain gave it."""
        network = (await self._status(sandbox)).status.network
        texts = [network.ip, *(more.ip for more in network.additional_ips)]
        return tuple(ip_address(text) for text in texts if text)

    async def pid(self, sandbox: str) -> int:
        """The process that holds the sandbox's namespaces."""
        return int((await self._info(sandbox))["pid"])

    async def netns(self, sandbox: str) -> str:
        """Path of its network namespace."""
        spaces = (await self._info(sandbox))["runtimeSpec"]["linux"]["namespaces"]
        return next(str(space["path"]) for space in spaces if space["type"] == "network")

    async def run_container(self, sandbox: str, *args: str) -> str:
        """Start the image's program in the pod; see ``pod_program.c``. Returns its id."""
        name = f"c{next(self._attempts)}"
        created = await self._call(
            "CreateContainer",
            kubelet_pb2.CreateContainerRequest(
                pod_sandbox_id=sandbox,
                config=kubelet_pb2.ContainerConfig(
                    metadata=kubelet_pb2.ContainerMetadata(name=name),
                    image=kubelet_pb2.ImageSpec(image=image.NAME),
                    command=[image.PROGRAM, *args],
                    log_path=name,
                ),
                sandbox_config=self._configs[sandbox],
            ),
            kubelet_pb2.ContainerRequest,
        )
        await self._ask("StartContainer", created)
        (self._logs / created.container_id).symlink_to(self._logs / name)
        return created.container_id

    async def exit_code(self, container: str) -> int:
        """Wait until the container has ended by itself."""
        request = kubelet_pb2.ContainerRequest(container_id=container)
        async with asyncio.timeout(PATIENCE):
            while True:
                answer = await self._call(
                    "ContainerStatus", request, kubelet_pb2.ContainerStatusResponse
                )
                if answer.status.state == kubelet_pb2.CONTAINER_EXITED:
                    return answer.status.exit_code
                await asyncio.sleep(0.01)

    def output(self, container: str) -> str:
        """What it has written so far, both streams, without the runtime's time stamps."""
        lines = (self._logs / container).read_text().splitlines()
        return "\n".join(re.sub(r"^\S+ (stdout|stderr) [FP] ", "", line) for line in lines)

    async def dial(self, sandbox: str, address: IPAddress, port: int) -> str:
        """Connect from a new container in the pod; returns what the server answered.

        Raises ``AssertionError`` where the connection fails.
        """
        container = await self.run_container(sandbox, "dial", str(address), str(port))
        code = await self.exit_code(container)
        assert code == 0, self.output(container)
        return self.output(container)

    async def clear(self) -> None:
        """Remove every sandbox, as far as the runtime and the chain let us."""
        for sandbox in await self.sandboxes():
            with contextlib.suppress(grpc.aio.AioRpcError):
                await self.remove_sandbox(sandbox)

    async def network_ready(self) -> bool:
        """Whether the runtime answers, and has a network configuration to work with."""
        try:
            answer = await self._call("Status", kubelet_pb2.Empty(), kubelet_pb2.StatusResponse)
        except grpc.aio.AioRpcError:
            return False
        return all(condition.status for condition in answer.status.conditions)

    async def cni_configuration(self) -> str:
        """What the runtime says of the CNI configurations that it has loaded."""
        request = kubelet_pb2.StatusRequest(verbose=True)
        answer = await self._call("Status", request, kubelet_pb2.StatusResponse)
        return answer.info["cniconfig"]

    async def has_image(self) -> bool:
        """Whether pods can be made of the tests' image."""
        answer = await self._call(
            "ImageStatus",
            kubelet_pb2.ImageStatusRequest(image=kubelet_pb2.ImageSpec(image=image.NAME)),
            kubelet_pb2.ImageStatusResponse,
            service="ImageService",
        )
        return answer.HasField("image")

    async def _status(self, sandbox: str) -> kubelet_pb2.PodSandboxStatusResponse:
        return await self._call(
            "PodSandboxStatus",
            kubelet_pb2.PodSandboxStatusRequest(pod_sandbox_id=sandbox, verbose=True),
            kubelet_pb2.PodSandboxStatusResponse,
        )

    async def _info(self, sandbox: str) -> dict[str, Any]:
        info: dict[str, Any] = json.loads((await self._status(sandbox)).info["info"])
        return info

    async def _ask(self, method: str, request: Message) -> None:
        await self._call(method, request, kubelet_pb2.Empty)

    async def _call(
        self,
        method: str,
        request: Message,
        answer: type[M],
        timeout: float = PATIENCE,  # noqa: ASYNC109 - the call's own deadline
        service: str = "RuntimeService",
    ) -> M:
        # A channel for each call: the tests' event loops come and go.
        async with grpc.aio.insecure_channel(f"unix:{self.endpoint}") as channel:
            call = channel.unary_unary(
                f"/runtime.v1.{service}/{method}",
                request_serializer=type(request).SerializeToString,
                response_deserializer=answer.FromString,
            )
            result: M = await call(request, timeout=timeout)
            return result
