"""The bench keeps working. Needs: nft, ip and iptables-restore; takes some seconds."""

import asyncio
import sys
from collections.abc import Sequence

from tests.runtime import containerd
from tests.tools.bench import cluster

_NODE = ("in-pod", "enrollment", "drift", "host-set", "backends", "joining", "growth", "hostile")
_NODE_FIGURES = (
    "in-pod set-up",
    "the same by forking `nft -f`",
    "the same by `iptables-restore` twice",
    "the raw netlink batch (floor)",
    "unchanged second set-up",
    "inspection",
    "removal",
    "enrollment of one pod, 3 present",
    "6 pods at once",
    "linear: time per pod",
    "snapshot of 6 to a client that only answers",
    "snapshot of 6 to a fresh `ztunnel-stub`",
    "the agent's memory, 0 pods",
    "the agent's memory, 6 pods",
    "the watch and all else the agent keeps of a pod",
    "the agent's processor time, 14 quiet pods",
    "repair of a deleted rule, 14 present",
    "repair of a flushed table, 14 present",
    "repair of a deleted policy rule, 14 present",
    "the agent's processor time while one pod",
    "host probe set, 20 addresses: one added",
    "backend nftables: set-up",
    "backend iptables-nft: unchanged",
    "backend iptables-legacy: removal",
    "running pod joins, options off",
    "running pod leaves, options on",
    "the agent's memory after 16 enrollments and removals",
    "enrollment of an innocent pod, a quiet node",
    "enrollment of an innocent pod, idle connections",
    "enrollment of an innocent pod, flooding pods",
    "enrollment of an innocent pod, huge annotations",
    "enrollment of an innocent pod, all three",
)


_CLUSTER_FIGURES = (
    "Python that imports the agent's libraries",
    "agent start to ready, nothing in the cluster",
    "agent start to ready, 3 labeled pods, 5 namespaces, no rules yet",
    "agent start to ready, 3 labeled pods, 5 namespaces, rules stand",
    "agent start to the last annotation, 3 labeled pods",
    "label of a namespace to ztunnel's answer, 3 pods",
    "label of a namespace to the annotation, 3 pods",
    "API requests per pod enrolled | 1 |",
    "the agent's memory, 3 pods, 9 namespaces",
    "the agent's memory, each further namespace",
    "the agent's processor time with an API server",
    "label of a pod to ztunnel's answer, 3 present",
    "label of a pod to the annotation, 3 present",
)
_RUNTIME_FIGURES = (
    "agent start to ready, 1 sandbox of containerd, found through CRI",
    "agent start to ready, 1 sandbox of containerd, found through procfs",
)
_CNI_FIGURES = (
    "an exec of `/bin/true` (floor) |",
    "the plugin's binary, answered at once",
    "the plugin's call, pod not in the mesh |",
    "the plugin's call, pod in the mesh |",
    "an exec of `/bin/true` (floor), 4 at once",
    "the plugin's call, pod not in the mesh, 4 at once",
    "the plugin's call, pod in the mesh, 4 at once",
)


async def test_quick_bench_prints_every_figure() -> None:
    """``python -m tests.tools.bench --quick`` ends well, with each figure once (L25)."""
    output = await _bench(*_NODE)
    assert _missing(output, _NODE_FIGURES) == [], output


async def test_quick_bench_of_cluster_and_plugin_prints_every_figure() -> None:
    """L25: with an API server, a runtime and the plugin, too; what is left out is named."""
    output = await _bench("cluster", "cni")
    assert _missing(output, _CNI_FIGURES) == [], output
    for figures, reason in (
        (_CLUSTER_FIGURES, cluster.missing()),
        (_RUNTIME_FIGURES, cluster.missing() or containerd.missing()),
    ):
        assert _missing(output, figures) == (list(figures) if reason else []), output
        assert reason is None or f"left out: {reason}" in output


async def _bench(*parts: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.tools.bench", "--quick", *parts),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    return output.decode()


def _missing(output: str, figures: Sequence[str]) -> list[str]:
    lines = output.splitlines()
    return [
        figure for figure in figures if sum(line.startswith(f"| {figure}") for line in lines) != 1
    ]
