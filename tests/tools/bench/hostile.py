"""The enrollment of an innocent pod while others work against the node."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from tests.tools.bench.enrollment import crowd, leave
from tests.tools.bench.node import Node, Pod
from tests.tools.bench.programs import Agent
from tests.tools.bench.report import Figure, median, milliseconds, percentile99
from tests.tools.bench.ztunnel import PlainZtunnel

_AIM = 2.0
"""Times of a quiet node, in the median."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """How much is measured."""

    samples: int
    """Innocent pods, one after the other, for each kind of neighbor."""
    flooding: int
    annotated: int


def figures(node: Node, counts: Counts) -> Iterator[Figure]:
    """A quiet node, then each kind of neighbor, then all at once."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    port = _free_port()
    flooding, annotated = node.pods(counts.flooding), node.pods(counts.annotated)
    source = ("--pod-manifests", node.manifests, "--readiness-address", f"127.0.0.1:{port}")
    with Agent(node, *source) as agent, PlainZtunnel(agent) as ztunnel:
        files = [_annotate(node, pod) for pod in annotated]
        ztunnel.accept_all([pod.uid() for pod in annotated])
        crowd(node, ztunnel, flooding)
        agent.settled()
        quiet = _times(node, ztunnel, counts.samples)
        yield _figure("a quiet node", quiet, quiet)
        kinds = {
            "idle connections": ("connections", str(port)),
            "flooding pods": ("flooding", *(pod.path for pod in flooding)),
            "huge annotations": ("annotations", *files),
        }
        for what, arguments in kinds.items():
            with _neighbor(*arguments):
                yield _figure(what, _times(node, ztunnel, counts.samples), quiet)
        with ExitStack() as neighbors:
            for arguments in kinds.values():
                neighbors.enter_context(_neighbor(*arguments))
            yield _figure("all three", _times(node, ztunnel, counts.samples), quiet)
        pods = [*flooding, *annotated]
        for path in files:
            os.unlink(path)
        node.delete(flooding)
        ztunnel.delete_all([pod.uid() for pod in pods])


def _times(node: Node, ztunnel: PlainZtunnel, samples: int) -> list[float]:
    times = []
    for pod in node.pods(samples):
        times.append(crowd(node, ztunnel, [pod]))
        leave(node, ztunnel, [pod])
    return times


def _figure(what: str, times: list[float], quiet: list[float]) -> Figure:
    ratio = median(times) / median(quiet)
    itself = times is quiet
    return Figure(
        what=f"enrollment of an innocent pod, {what}",
        value=f"median {milliseconds(median(times))}, "
        f"99th percentile {milliseconds(percentile99(times))}",
        ratio="" if itself else f"{ratio:.2f} times the quiet node",
        aim="" if itself else f"≤ {_AIM:g} times in the median",
        met=None if itself else ratio <= _AIM,
    )


def _annotate(node: Node, pod: Pod) -> str:
    """Write the manifest of `pod` as JSON, for the neighbor to change; return its path."""
    manifest = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": pod.name,
            "namespace": "bench",
            "uid": pod.uid(),
            "labels": {"istio.io/dataplane-mode": "ambient"},
            "annotations": {"nodeagent.io/netns": pod.path},
        },
        "status": {"phase": "Running", "podIPs": [{"ip": str(pod.address)}]},
    }
    path = os.path.join(node.manifests, f"{pod.name}.json")
    with open(path, "w", encoding="utf-8") as file:
        json.dump(manifest, file)
    return path


@contextmanager
def _neighbor(*arguments: str) -> Iterator[None]:
    program = [sys.executable, "-m", "tests.tools.bench.neighbors", *arguments]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n", "the neighbor has failed"
            yield
        finally:
            process.kill()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
