"""The agent's start among pods of a real container runtime: found through CRI, and procfs."""

import asyncio
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.cluster.control_plane import ControlPlane
from tests.runtime import image
from tests.runtime.containerd import Containerd
from tests.tools.bench.cluster_node import ClusterAgent
from tests.tools.bench.cluster_watch import MODE
from tests.tools.bench.node import Node
from tests.tools.bench.report import Figure, median, milliseconds
from tests.tools.bench.ztunnel import PlainZtunnel

_NAMESPACE = "sandboxes"
_NODE = "runtime-node"


def figures(node: Node, plane: ControlPlane, count: int, repeats: int) -> Iterator[Figure]:
    """Start to ready with so many sandboxes, whose rules stand; each way in turns."""
    through_cri, through_procfs = asyncio.run(_measure(node, plane, count, repeats))
    pods = "1 sandbox" if count == 1 else f"{count} sandboxes"
    for taken, way in ((through_cri, "CRI"), (through_procfs, "procfs")):
        yield Figure(
            what=f"agent start to ready, {pods} of containerd, found through {way}",
            value=milliseconds(median(taken)),
            ratio=f"{median(taken) / median(through_procfs):.2f} times procfs",
        )


async def _measure(
    node: Node, plane: ControlPlane, count: int, repeats: int
) -> tuple[list[float], list[float]]:
    plane.admin.make_namespace(_NAMESPACE)
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        archive = image.build(Path(directory))
        async with Containerd(Path(directory), archive) as containerd:
            uids = [await _pod(plane, containerd, f"pod-{number}") for number in range(count)]
            endpoint = containerd.endpoint
            _start(node, plane, uids, endpoint)
            times: dict[str | None, list[float]] = {endpoint: [], None: []}
            for _ in range(repeats):
                for runtime, taken in times.items():
                    taken.append(_start(node, plane, uids, runtime))
    return times[endpoint], times[None]


async def _pod(plane: ControlPlane, containerd: Containerd, name: str) -> str:
    made = plane.admin.make_pod(
        _NAMESPACE, name, node=_NODE, labels={MODE: "ambient"}, phase="Pending"
    )
    uid: str = made["metadata"]["uid"]
    sandbox = await containerd.run_sandbox(name, _NAMESPACE, uid)
    addresses = [str(address) for address in await containerd.addresses(sandbox)]
    plane.admin.set_pod_status(_NAMESPACE, name, addresses=addresses)
    return uid


def _start(node: Node, plane: ControlPlane, uids: list[str], runtime: str | None) -> float:
    with ClusterAgent(node, plane, _NODE, runtime=runtime) as agent, PlainZtunnel(agent) as ztunnel:
        ztunnel.accept_all(uids)
        return agent.start_time
