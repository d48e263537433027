"""The container runtime, asked over CRI where the sandboxes of pods are."""

import json
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc.aio
from google.protobuf.message import Message

from nodeagent.mesh.errors import RetryError
from nodeagent.netns import cri_pb2
from nodeagent.netns.looks import Looks

ENDPOINTS = (
    "/run/containerd/containerd.sock",
    "/run/crio/crio.sock",
    "/run/k3s/containerd/containerd.sock",
)
"""Where runtimes listen, on the host; the first that is there is asked."""
POD_UID = "io.kubernetes.pod.uid"
"""The label that kubelet gives to each sandbox."""

_SERVICE = "/runtime.v1.RuntimeService/"
_TIMEOUT = 5.0
"""Seconds for each call; containerd needs 1.4 ms for a status."""
_APART = 0.02
"""Seconds between lists."""
_OPTIONS = [
    # The address of a Unix socket is no host name, and some servers check it.
    ("grpc.default_authority", "localhost"),
    # 500 sandboxes with all the annotations that Kubernetes allows to each.
    ("grpc.max_receive_message_length", 128 << 20),
    # gRPC's own are 1 s and 2 min: a runtime that restarts is back sooner.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
]

M = TypeVar("M", bound=Message)


class RuntimeUnavailableError(RetryError):
    """The container runtime does not answer, or not as CRI has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeVersion:
    """Which runtime answers, for people."""

    name: str
    version: str


class ContainerRuntime:
    """A connection to the container runtime: made with the first call, and again by itself."""

    def __init__(self, *, endpoint: str, prefix: str) -> None:
        """`endpoint`: path of the socket, "" for the first of `ENDPOINTS` under `prefix`."""
        self._candidates = [endpoint] if endpoint else [prefix + path for path in ENDPOINTS]
        self._channel: grpc.aio.Channel | None = None

    async def version(self) -> RuntimeVersion:
        """Ask who it is. Raises ``RuntimeUnavailableError``."""
        answer = await self._call("Version", cri_pb2.VersionRequest(), cri_pb2.VersionResponse)
        return RuntimeVersion(name=answer.runtime_name, version=answer.runtime_version)

    async def info(self) -> Mapping[str, str]:
        """What it tells of its own configuration: JSON texts by key, different in each runtime.

        Raises ``RuntimeUnavailableError``.
        """
        request = cri_pb2.StatusRequest(verbose=True)
        return dict((await self._call("Status", request, cri_pb2.StatusResponse)).info)

    async def sandboxes(self) -> Mapping[str, Sequence[str]]:
        """For each pod UID the ids of its ready sandboxes, the newest first.

        Raises ``RuntimeUnavailableError``.
        """
        ready = cri_pb2.PodSandboxStateValue(state=cri_pb2.SANDBOX_READY)
        request = cri_pb2.ListPodSandboxRequest(filter=cri_pb2.PodSandboxFilter(state=ready))
        answer = await self._call("ListPodSandbox", request, cri_pb2.ListPodSandboxResponse)
        found: defaultdict[str, list[str]] = defaultdict(list)
        for sandbox in sorted(answer.items, key=lambda item: item.created_at, reverse=True):
            found[sandbox.labels[POD_UID]].append(sandbox.id)
        return found

    async def netns_paths(self, sandbox: str) -> Sequence[str]:
        """Where on the host the sandbox's network namespace is, the surest path first.

        Raises ``RuntimeUnavailableError``, also where the sandbox has gone.
        """
        answer = await self._call(
            "PodSandboxStatus",
            cri_pb2.PodSandboxStatusRequest(pod_sandbox_id=sandbox, verbose=True),
            cri_pb2.PodSandboxStatusResponse,
        )
        try:
            return _paths(json.loads(answer.info["info"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RuntimeUnavailableError(
                "the container runtime does not say where the sandbox's namespace is"
            ) from error

    async def close(self) -> None:
        """Hang up. Idempotent."""
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()

    async def _call(self, method: str, request: Message, answer: type[M]) -> M:
        call = self._connected().unary_unary(
            _SERVICE + method,
            request_serializer=type(request).SerializeToString,
            response_deserializer=answer.FromString,
        )
        try:
            result: M = await call(request, timeout=_TIMEOUT)
        except grpc.aio.AioRpcError as error:
            detail = " ".join((error.details() or "").split())[:200]
            raise RuntimeUnavailableError(
                f"the container runtime answers {method} with {error.code().name}: {detail}"
            ) from error
        return result

    def _connected(self) -> grpc.aio.Channel:
        if self._channel is None:
            endpoint = next(filter(os.path.exists, self._candidates), None)
            if endpoint is None:
                raise RuntimeUnavailableError(
                    f"no container runtime listens at {' or '.join(self._candidates)}"
                )
            self._channel = grpc.aio.insecure_channel(f"unix:{endpoint}", options=_OPTIONS)
        return self._channel


class RuntimeSandboxes:
    """Where the sandboxes of a pod have their network namespaces."""

    name = "container runtime"

    def __init__(self, runtime: ContainerRuntime) -> None:
        self._runtime = runtime
        self._looks = Looks(runtime.sandboxes, apart=_APART)

    async def paths(self, uid: str) -> Sequence[str]:
        """Paths on the host, the newest sandbox's first.

        Raises ``RetryError`` where the pod has no sandbox that is ready.
        """
        sandboxes = await self._looks.ask(uid)
        if not sandboxes:
            raise RetryError("no sandbox of the pod is ready")
        return [path for one in sandboxes for path in await self._runtime.netns_paths(one)]


def _paths(info: Any) -> list[str]:
    spaces = info["runtimeSpec"]["linux"]["namespaces"]
    found = [
        str(space["path"]) for space in spaces if space["type"] == "network" and "path" in space
    ]
    # The process's is there too where the agent's mounts do not show the path.
    return [*found, f"/proc/{pid}/ns/net"] if (pid := int(info["pid"])) > 0 else found
