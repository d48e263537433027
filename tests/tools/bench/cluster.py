"""The agent with a real API server: its start, label to enrolled, memory, requests, rest."""

import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Self

from tests.cluster import binaries
from tests.cluster.control_plane import ControlPlane
from tests.runtime import containerd
from tests.tools.bench import cluster_runtime
from tests.tools.bench.cluster_node import NAME, Cluster, ClusterAgent, cgroups_missing
from tests.tools.bench.cluster_watch import AMBIENT, Watch
from tests.tools.bench.node import Node
from tests.tools.bench.programs import Footprint
from tests.tools.bench.report import Figure, median, milliseconds, percentile99
from tests.tools.bench.ztunnel import PlainZtunnel

_CROWD, _SINGLES = "crowd", "singles"
_RESIDENT_AIM = 80
"""MiB, with the Kubernetes client."""
_START_AIM = 1.2
"""Times the import of the libraries."""
_NAMESPACE_AIM = 2.0
"""KiB for each namespace of the cluster."""
_REST_AIM = 0.005
"""Of one core."""
_INTERVAL = 60
"""Seconds, the agent's own; the first one after a start has fewer looks than the others."""
_IMPORTS = """
import nodeagent  # which postpones what is not used of the libraries
import aiohttp.web, grpc.aio, google.protobuf.internal.builder, nftables, structlog, yaml
import kubernetes.aio.client.rest, kubernetes.aio.config.kube_config, pyroute2.netlink.rtnl
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """How much is measured."""

    pods: int
    namespaces: tuple[int, int]
    """For the start and the enrollments, and for the memory."""
    singles: int
    """Pods that are labeled one after the other, while the others are enrolled."""
    sandboxes: int
    """Pods of a real container runtime."""
    repeats: int
    interval: float
    """Seconds between two looks at a pod while nothing happens: what they cost is scaled."""


def missing() -> str | None:
    """Why all of this is left out; None: it is not."""
    return binaries.missing() or cgroups_missing()


def figures(node: Node, counts: Counts) -> Iterator[Figure]:
    """All of them that this machine allows, from one control plane that grows."""
    if missing():
        return
    with ExitStack() as opened:
        plane = opened.enter_context(ControlPlane(binaries.find()))
        cluster = opened.enter_context(Cluster(node, plane))
        small, large = counts.namespaces
        empty = [_start_time(node, plane) for _ in range(counts.repeats)]
        imports = [_import_time() for _ in range(counts.repeats)]
        yield from _empty_figures(empty, imports)

        for name in (_CROWD, _SINGLES):
            plane.admin.make_namespace(name)
        cluster.add_namespaces(small)
        crowd = opened.enter_context(_Crowd(node, plane, cluster, counts.pods))
        for _ in range(counts.repeats):
            crowd.come_and_go()
        before = crowd.footprint
        yield from _crowd_figures(crowd, median(empty), counts)

        cluster.add_namespaces(large - small)
        singles = cluster.add_pods(_SINGLES, counts.singles)
        crowd.stay()
        yield _rest_figure(node, plane, crowd.uids, counts)
        with ClusterAgent(node, plane) as agent, PlainZtunnel(agent) as ztunnel:
            ztunnel.accept_all(crowd.uids)
            yield from _memory_figures(before, agent.settled(), counts)
            yield from _single_figures(cluster, ztunnel, crowd.watch, singles, counts)
        if not containerd.missing():
            yield from cluster_runtime.figures(node, plane, counts.sandboxes, counts.repeats)


class _Crowd:
    """Pods that come to the mesh and go with one label: their namespace's."""

    def __init__(self, node: Node, plane: ControlPlane, cluster: Cluster, count: int) -> None:
        self._node, self._plane, self._cluster = node, plane, cluster
        self._pods = cluster.add_pods(_CROWD, count)
        self.uids = list(self._pods.values())
        self.times: defaultdict[str, list[float]] = defaultdict(list)
        self.requests: dict[str, float] = {}
        """Made for the last round's enrollments, by what was asked."""
        self.footprint = Footprint(0, 0)
        self._opened = ExitStack()
        self.watch = self._opened.enter_context(
            Watch(plane, "pods", fieldSelector=f"spec.nodeName={NAME}")
        )
        self._labels = self._opened.enter_context(
            Watch(plane, "namespaces", fieldSelector=f"metadata.name={_CROWD}")
        )

    def stay(self) -> None:
        """Enroll them, and leave them so."""
        self.watch.forget()
        self._cluster.label_namespace(_CROWD, AMBIENT)
        with ClusterAgent(self._node, self._plane) as agent, PlainZtunnel(agent):
            self.times["first start"].append(agent.start_time)
            ready = time.perf_counter() - agent.start_time
            annotated = self.watch.annotated(self._pods, "enabled")
            self.times["first start, annotated"].append(max(annotated.values()) - ready)

    def come_and_go(self) -> None:
        """Agent's start without rules, its start again, out of the mesh, and in again."""
        self.stay()
        with ClusterAgent(self._node, self._plane) as agent, PlainZtunnel(agent) as ztunnel:
            self.times["start again"].append(agent.start_time)
            ztunnel.accept_all(self.uids)
            self.footprint = agent.settled()
            self._leave(agent, ztunnel)
            self._join(agent, ztunnel)
            self._leave(agent, ztunnel)

    def _leave(self, agent: ClusterAgent, ztunnel: PlainZtunnel) -> None:
        self.watch.forget()
        ztunnel.forget()
        self._cluster.label_namespace(_CROWD, None)
        ztunnel.delete_all(self.uids)
        self.watch.annotated(self._pods, None)
        agent.settled()

    def _join(self, agent: ClusterAgent, ztunnel: PlainZtunnel) -> None:
        for forgetful in (self.watch, self._labels, ztunnel):
            forgetful.forget()
        before = self._cluster.requests()
        self._cluster.label_namespace(_CROWD, AMBIENT)
        accepted = ztunnel.accept_all(self.uids)
        annotated = max(self.watch.annotated(self._pods, "enabled").values())
        heard = self._labels.labeled([_CROWD], AMBIENT)[_CROWD]
        self.times["accepted"].append(accepted - heard)
        self.times["annotated"].append(annotated - heard)
        agent.settled()
        after = self._cluster.requests()
        made = {asked: after[asked] - before.get(asked, 0) for asked in after}
        self.requests = {asked: count for asked, count in made.items() if count}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()


def _start_time(node: Node, plane: ControlPlane) -> float:
    with ClusterAgent(node, plane) as agent:
        return agent.start_time


def _import_time() -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", _IMPORTS], check=True)
    return time.perf_counter() - started


def _empty_figures(empty: list[float], imports: list[float]) -> Iterator[Figure]:
    yield Figure(
        what="Python that imports the agent's libraries and ends (floor)",
        value=milliseconds(median(imports)),
    )
    ratio = median(empty) / median(imports)
    yield Figure(
        what="agent start to ready, nothing in the cluster",
        value=milliseconds(median(empty)),
        ratio=f"{ratio:.2f} times the floor",
        aim=f"< {_START_AIM} times",
        met=ratio < _START_AIM,
    )


def _crowd_figures(crowd: _Crowd, empty: float, counts: Counts) -> Iterator[Figure]:
    many = f"{counts.pods} labeled pods, {counts.namespaces[0]:,} namespaces"
    for way, name in (("first start", "no rules yet"), ("start again", "rules stand")):
        taken = median(crowd.times[way])
        yield Figure(
            what=f"agent start to ready, {many}, {name}",
            value=milliseconds(taken),
            ratio=f"{taken / empty:.1f} times an empty cluster's",
        )
    taken = median(crowd.times["first start, annotated"])
    yield Figure(
        what=f"agent start to the last annotation, {many}, no rules yet",
        value=milliseconds(taken),
        ratio=f"{taken / empty:.1f} times an empty cluster's",
    )
    for way, name in (("accepted", "ztunnel's answer"), ("annotated", "the annotation")):
        taken = median(crowd.times[way])
        yield Figure(
            what=f"label of a namespace to {name}, {counts.pods} pods in it",
            value=f"{milliseconds(taken)}, {milliseconds(taken / counts.pods)} per pod",
        )
    asked = ", ".join(f"{name} {count:g}" for name, count in sorted(crowd.requests.items()))
    made = sum(crowd.requests.values()) / counts.pods
    yield Figure(
        what="API requests per pod enrolled",
        value=f"{made:g}",
        ratio=asked,
        aim="1: one patch",
        met=made == 1,
    )


def _rest_figure(node: Node, plane: ControlPlane, uids: list[str], counts: Counts) -> Figure:
    often = counts.interval
    agent = ClusterAgent(node, plane, verify_interval=often)
    with agent, PlainZtunnel(agent) as ztunnel:
        ztunnel.accept_all(uids)
        time.sleep(1.25 * often)  # with its jitter
        busy = agent.share(2 * often)
    used = busy * often / _INTERVAL
    return Figure(
        what=f"the agent's processor time with an API server, {counts.pods} quiet pods",
        value=f"{used:.2%} of a core",
        ratio=f"{used * _INTERVAL / counts.pods * 1000:.2f} ms for each look, one in {_INTERVAL} s",
        aim=f"< {_REST_AIM:.1%}",
        met=used < _REST_AIM,
    )


def _memory_figures(small: Footprint, large: Footprint, counts: Counts) -> Iterator[Figure]:
    few, many = counts.namespaces
    for namespaces, footprint in ((few, small), (many, large)):
        yield Figure(
            what=f"the agent's memory, {counts.pods} pods, {namespaces:,} namespaces",
            value=str(footprint),
            aim=f"< {_RESIDENT_AIM} MiB",
            met=footprint.mebibytes < _RESIDENT_AIM,
        )
    each = (large.resident - small.resident) / (many - few) / 1024
    yield Figure(
        what="the agent's memory, each further namespace",
        value=f"{each:.2f} KiB",
        aim=f"< {_NAMESPACE_AIM:g} KiB",
        met=each < _NAMESPACE_AIM,
    )


def _single_figures(
    cluster: Cluster,
    ztunnel: PlainZtunnel,
    watch: Watch,
    singles: Mapping[str, str],
    counts: Counts,
) -> Iterator[Figure]:
    accepted, annotated = [], []
    for name, uid in singles.items():
        cluster.label_pod(_SINGLES, name, AMBIENT)
        heard = watch.labeled([name], AMBIENT)[name]
        accepted.append(ztunnel.accept_all([uid]) - heard)
        annotated.append(watch.annotated([name], "enabled")[name] - heard)
    for times, what in ((accepted, "ztunnel's answer"), (annotated, "the annotation")):
        yield Figure(
            what=f"label of a pod to {what}, {counts.pods} present",
            value=f"median {milliseconds(median(times))}, "
            f"99th percentile {milliseconds(percentile99(times))}",
        )
