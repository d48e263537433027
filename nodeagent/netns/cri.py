"""The container runtime, asked over CRI for the sandboxes of pods and their netns."""

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
from nodeagent.netns.shared_scan import SharedScan

ENDPOINTS = (
    "/run/k3s/containerd/containerd.sock",  # RKE2's as well
    "/run/k0s/containerd.sock",
    "/var/snap/microk8s/common/run/containerd.sock",
    "/run/cri-dockerd.sock",
    "/run/crio/crio.sock",
    "/run/containerd/containerd.sock",
)
"""Where runtimes listen, on the host; the first that answers is asked. containerd's own place is
the last: Docker has one there, too, on nodes whose pods are elsewhere."""
POD_UID = "io.kubernetes.pod.uid"
"""The label that kubelet gives to each sandbox."""

_SERVICE = "/runtime.v1.RuntimeService/"
_TIMEOUT = 5.0
"""Seconds for each call; containerd needs 1.4 ms for a status."""
_MAX_PID = 1 << 22
"""PID_MAX_LIMIT of 64-bit kernels (include/linux/threads.h)."""
_APART = 0.02
"""Seconds from one list to the next at the least."""
_OPTIONS = [
    # The address of a Unix socket is no host name, and some servers check it.
    ("grpc.default_authority", "localhost"),
    # 500 sandboxes with all the annotations that Kubernetes allows to each.
    ("grpc.max_receive_message_length", 128 << 20),
    # gRPC's own are 1 s and 2 min: a runtime that restarts is back sooner.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
]

_NOBODY_THERE = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNIMPLEMENTED})
"""What a socket answers that a former runtime has left, or a containerd without its CRI plugin."""

M = TypeVar("M", bound=Message)


class RuntimeUnavailableError(RetryError):
    """The container runtime does not answer, or not as CRI has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeVersion:
    """The name and version of the runtime, for people."""

    name: str
    version: str


class ContainerRuntime:
    """A connection to the container runtime: made with the first call, and again by itself."""

    def __init__(self, *, endpoint: str, prefix: str) -> None:
        """`endpoint`: path of the socket, "" for the first of `ENDPOINTS` under `prefix`."""
        self._candidates = [endpoint] if endpoint else [prefix + path for path in ENDPOINTS]
        self._channels: dict[str, grpc.aio.Channel] = {}

    async def version(self) -> RuntimeVersion:
        """The runtime's name and version. Raises ``RuntimeUnavailableError``."""
        answer = await self._call("Version", cri_pb2.VersionRequest(), cri_pb2.VersionResponse)
        return RuntimeVersion(name=answer.runtime_name, version=answer.runtime_version)

    async def info(self) -> Mapping[str, str]:
        """The runtime's own configuration: JSON texts by key, different in each runtime.

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
        """Paths on the host of the sandbox's netns, the surest first.

        Raises ``RuntimeUnavailableError``, also where the sandbox has gone.
        """
        answer = await self._call(
            "PodSandboxStatus",
            cri_pb2.PodSandboxStatusRequest(pod_sandbox_id=sandbox, verbose=True),
            cri_pb2.PodSandboxStatusResponse,
        )
        if paths := netns_paths(answer.info.get("info", "")):
            return paths
        raise RuntimeUnavailableError(
            "the container runtime does not say where the sandbox's netns is"
        )

    async def close(self) -> None:
        """Hang up. Idempotent."""
        channels, self._channels = self._channels, {}
        for channel in channels.values():
            await channel.close()

    async def _call(self, method: str, request: Message, answer: type[M]) -> M:
        failures = []
        for endpoint in self._present():
            call = self._connected(endpoint).unary_unary(
                _SERVICE + method,
                request_serializer=type(request).SerializeToString,
                response_deserializer=answer.FromString,
            )
            try:
                result: M = await call(request, timeout=_TIMEOUT)
            except grpc.aio.AioRpcError as error:
                detail = " ".join((error.details() or "").split())[:200]
                failures.append(
                    f"the container runtime answers {method} with {error.code().name}: {detail}"
                )
                if error.code() not in _NOBODY_THERE:
                    break
            else:
                return result
        raise RuntimeUnavailableError("; ".join(failures))

    def _present(self) -> list[str]:
        present = [path for path in self._candidates if os.path.exists(path)]
        if not present:
            raise RuntimeUnavailableError(
                f"no container runtime listens at {' or '.join(self._candidates)}"
            )
        return present

    def _connected(self, endpoint: str) -> grpc.aio.Channel:
        if endpoint not in self._channels:
            self._channels[endpoint] = grpc.aio.insecure_channel(
                f"unix:{endpoint}", options=_OPTIONS
            )
        return self._channels[endpoint]


class RuntimeSandboxes:
    """Finds a pod's netns by what the container runtime says of the pod's sandboxes."""

    name = "container runtime"

    def __init__(self, runtime: ContainerRuntime) -> None:
        self._runtime = runtime
        self._scan = SharedScan(runtime.sandboxes, apart=_APART)

    async def paths(self, uid: str) -> Sequence[str]:
        """Paths on the host, the newest sandbox's first.

        Raises ``RetryError`` where the pod has no sandbox that is ready.
        """
        sandboxes = await self._scan.ask(uid)
        if not sandboxes:
            raise RetryError("no sandbox of the pod is ready")
        paths: list[str] = []
        failures: list[RuntimeUnavailableError] = []
        for sandbox in sandboxes:
            try:
                paths += await self._runtime.netns_paths(sandbox)
            except RuntimeUnavailableError as error:
                failures.append(error)  # the sandbox has gone meanwhile; the others may be there
        if failures and not paths:
            raise failures[0]
        return paths


def netns_paths(info: str) -> list[str]:
    """The paths of a sandbox's netns in `info`, the runtime's verbose status as JSON text.

    CRI does not define the fields, so each is used only where it is there and makes sense.
    CRI-O, for instance, names no process for a pod without an infra container.
    """
    try:
        said = json.loads(info)
    except (ValueError, RecursionError):
        return []
    spaces = _inner(said, "runtimeSpec", "linux", "namespaces")
    paths = [
        _inner(space, "path")
        for space in (spaces if isinstance(spaces, list) else ())
        if _inner(space, "type") == "network"
    ]
    found = [path for path in paths if isinstance(path, str) and path]
    pid = _inner(said, "pid")
    # This path works also where the agent's mounts do not show the other one.
    if type(pid) is int and 0 < pid <= _MAX_PID:
        found.append(f"/proc/{pid}/ns/net")
    return found


def _inner(value: Any, *keys: str) -> Any:
    """The value under `keys`, one in another; None where one of them is not there."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value
