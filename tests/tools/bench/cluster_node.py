"""A node of a cluster, cheap: its pods are a process each, in a network namespace and a cgroup."""

import http.client
import os
import re
import socket
import subprocess
import time
from collections import defaultdict
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from nodeagent.linux import syscalls as kernel
from tests.cluster.control_plane import ControlPlane
from tests.eventually import PATIENCE
from tests.lab.pod import call_in_thread
from tests.tools.bench.cluster_watch import MODE
from tests.tools.bench.node import Node, Pod
from tests.tools.bench.programs import Agent

NAME = "bench-node"


_HIERARCHIES = ("/sys/fs/cgroup/pids", "/sys/fs/cgroup")
"""Of cgroup v1, one of several; of v2 the only one."""
_COUNTED = re.compile(r"apiserver_request_total\{(?P<labels>[^}]*)\} (?P<count>\S+)")
_LOOK = 0.01
"""Seconds between two questions for readiness: more would be work for the agent."""


def cgroups_missing() -> str | None:
    """Why pods cannot have cgroups here; None: they can."""
    if os.access(_hierarchy(), os.W_OK):
        return None
    return "root itself is needed, and a cgroup file system that it may write"


class ClusterAgent(Agent):
    """The agent, with the Kubernetes API instead of a folder; `start_time` is until ready."""

    def __init__(
        self,
        node: Node,
        plane: ControlPlane,
        name: str = NAME,
        *,
        runtime: str | None = None,
        verify_interval: float = 60,
    ) -> None:
        """`name` is the node's; `runtime`: its container runtime's socket; interval in seconds."""
        port = _free_port()
        nowhere = os.path.join(node.directory, "no-runtime.sock")
        started = time.perf_counter()
        super().__init__(
            node,
            *("--kubeconfig", plane.kubeconfig(Path(node.directory) / "kubeconfig")),
            *("--node-name", name),
            *("--host-prefix", ""),
            *("--verify-interval", str(verify_interval)),
            *("--container-runtime-endpoint", runtime or nowhere),
            *("--readiness-address", f"127.0.0.1:{port}"),
        )
        try:
            self.until(lambda: _is_ready(port), "readiness", every=_LOOK)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        self.start_time = time.perf_counter() - started


class Cluster:
    """Owns the pods' processes until the end of its ``with``; borrows all else."""

    def __init__(self, node: Node, plane: ControlPlane) -> None:
        self._node = node
        self._plane = plane
        self._opened = ExitStack()
        self._namespaces = 0
        self._cgroup = _hierarchy() / f"nodeagent-bench-{os.path.basename(node.directory)}"
        self._cgroup.mkdir()
        self._opened.callback(self._cgroup.rmdir)

    def add_namespaces(self, count: int) -> None:
        """Make so many without pods, labeled as a cluster's are."""
        for number in range(self._namespaces, self._namespaces + count):
            name = f"team-{number}"
            labels = {"kubernetes.io/metadata.name": name, "team": name, "stage": "production"}
            body = {"metadata": {"name": name, "labels": labels}}
            self._plane.admin.post("/api/v1/namespaces", body)
        self._namespaces += count

    def add_pods(self, namespace: str, count: int) -> dict[str, str]:
        """Run so many in `namespace`; their UIDs, by name."""
        pods = self._node.pods(count)
        made = {}
        for pod, process in zip(
            pods, call_in_thread(lambda: list(map(_run_in, pods))), strict=True
        ):
            answer = self._plane.admin.make_pod(
                namespace, pod.name, node=NAME, addresses=[str(pod.address)]
            )
            uid = made[pod.name] = answer["metadata"]["uid"]
            cgroup = self._cgroup / f"pod{uid}"
            cgroup.mkdir()
            self._opened.callback(cgroup.rmdir)
            self._opened.callback(_end, process)
            (cgroup / "cgroup.procs").write_text(str(process.pid))
        return made

    def label_namespace(self, name: str, mode: str | None) -> None:
        body = {"metadata": {"labels": {MODE: mode}}}
        self._plane.admin.patch(f"/api/v1/namespaces/{name}", body)

    def label_pod(self, namespace: str, name: str, mode: str | None) -> None:
        body = {"metadata": {"labels": {MODE: mode}}}
        self._plane.admin.patch(f"/api/v1/namespaces/{namespace}/pods/{name}", body)

    def requests(self) -> Mapping[str, float]:
        """How many were made so far about pods and events, by what was asked."""
        counts: defaultdict[str, float] = defaultdict(float)
        for found in _COUNTED.finditer(self._plane.admin.get("/metrics")["text"]):
            labels = dict(re.findall(r'(\w+)="([^"]*)"', found["labels"]))
            if labels["resource"] in {"pods", "events"}:
                path = "/".join(filter(None, (labels["resource"], labels["subresource"])))
                counts[f"{labels['verb']} {path}"] += float(found["count"])
        return counts

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()


def _hierarchy() -> Path:
    found = [path for path in _HIERARCHIES if os.path.exists(f"{path}/cgroup.procs")]
    return Path((found or ["/"])[0])


def _run_in(pod: Pod) -> subprocess.Popen[bytes]:
    """Start a process there; the calling thread stays."""
    kernel.setns(pod.netns.fd, kernel.CLONE_NEWNET)
    return subprocess.Popen(["sleep", "infinity"])


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def _is_ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == http.client.OK
    except OSError:
        return False
    finally:
        connection.close()


def _free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port: int = bound.getsockname()[1]
        return port
