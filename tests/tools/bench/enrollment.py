"""Enrollment from a manifest's rename to ztunnel's answer, in a running agent."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tests.tools.bench.node import Node, Pod
from tests.tools.bench.programs import Agent, Footprint
from tests.tools.bench.report import Figure, median, milliseconds, percentile99
from tests.tools.bench.ztunnel import PlainZtunnel, stub_snapshot

_MEDIAN_AIM = 0.010
_CROWD_AIM = {250: 3.0}
_SNAPSHOT_AIM = {1000: 1.0}
_EMPTY_AIM, _RESIDENT_AIM = 50, 60
"""MiB, without the Kubernetes client: before the first pod, and with pods."""
_LINEAR_AIM = 1.5
"""Time per pod at most, in relation to the smallest crowd's: less than a hidden square."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """How much is measured."""

    present: Sequence[int]
    """Pods that are enrolled already while one more comes."""
    samples: int
    crowds: Sequence[int]
    """Pods that come at once."""
    snapshots: Sequence[int]
    """Crowds of which ztunnel takes a snapshot."""
    repeats: int
    """Of what takes long; the median counts."""


def figures(node: Node, counts: Counts) -> Iterator[Figure]:
    """All of them, from two agents: what one has been through must not weigh on the other."""
    with Agent(node) as agent, PlainZtunnel(agent) as ztunnel:
        here: list[Pod] = []
        for present in counts.present:
            more = node.pods(present - len(here))
            crowd(node, ztunnel, more)
            here += more
            yield _one_by_one(node, ztunnel, present, counts.samples)
        leave(node, ztunnel, here)
    with Agent(node) as agent:
        yield from _crowds(node, agent, counts)


def _one_by_one(node: Node, ztunnel: PlainZtunnel, present: int, samples: int) -> Figure:
    times = []
    for pod in node.pods(samples):
        times.append(crowd(node, ztunnel, [pod]))
        leave(node, ztunnel, [pod])
    middle = median(times)
    return Figure(
        what=f"enrollment of one pod, {present} present",
        value=f"median {milliseconds(middle)}, 99th percentile {milliseconds(percentile99(times))}",
        aim=f"median < {milliseconds(_MEDIAN_AIM)}",
        met=middle < _MEDIAN_AIM,
    )


def _crowds(node: Node, agent: Agent, counts: Counts) -> Iterator[Figure]:
    footprints = {0: agent.settled()}
    per_pod: dict[int, float] = {}
    snapshots: list[Figure] = []
    for size in counts.crowds:
        times = []
        for repeat in range(counts.repeats):
            pods = node.pods(size)
            with PlainZtunnel(agent) as ztunnel:
                times.append(crowd(node, ztunnel, pods))
                if repeat == 0 and size in counts.snapshots:
                    footprints[size] = agent.settled()
                    snapshots += _snapshots(node, agent, size, counts.repeats)
                leave(node, ztunnel, pods)
        taken = median(times)
        per_pod[size] = taken / size
        aim = _CROWD_AIM.get(size)
        yield Figure(
            what=f"{size} pods at once",
            value=f"{milliseconds(taken)}, {milliseconds(taken / size)} per pod",
            ratio=f"{per_pod[size] / per_pod[counts.crowds[0]]:.2f} times the first, per pod",
            aim=f"< {aim:g} s" if aim else "",
            met=taken < aim if aim else None,
        )
    smallest, largest = counts.crowds[0], counts.crowds[-1]
    growth = per_pod[largest] / per_pod[smallest]
    yield Figure(
        what=f"linear: time per pod, {largest} against {smallest}",
        value=f"{milliseconds(per_pod[largest])} against {milliseconds(per_pod[smallest])}",
        ratio=f"{growth:.2f} times",
        aim=f"≤ {_LINEAR_AIM} times",
        met=growth <= _LINEAR_AIM,
    )
    yield from snapshots
    yield from _footprint_figures(footprints)


def _snapshots(node: Node, agent: Agent, size: int, repeats: int) -> Iterator[Figure]:
    plain, stub = [], []
    for _ in range(repeats):
        with PlainZtunnel(agent) as ztunnel:
            plain.append(ztunnel.snapshot_time)
        stub.append(stub_snapshot(agent, node.directory))
    aim = _SNAPSHOT_AIM.get(size)
    for times, client in (
        (plain, "a client that only answers"),
        (stub, "a fresh `ztunnel-stub` that opens its listeners"),
    ):
        taken = median(times)
        yield Figure(
            what=f"snapshot of {size} to {client}",
            value=f"{milliseconds(taken)}, {milliseconds(taken / size)} per pod",
            ratio=f"{taken / median(plain):.1f} times the protocol alone",
            aim=f"< {aim:g} s" if aim else "",
            met=taken < aim if aim else None,
        )


def _footprint_figures(footprints: dict[int, Footprint]) -> Iterator[Figure]:
    empty = footprints[0]
    for size, footprint in footprints.items():
        each = (footprint.resident - empty.resident) / size / 1024 if size else 0
        aim = _RESIDENT_AIM if size else _EMPTY_AIM
        yield Figure(
            what=f"the agent's memory, {size} pods",
            value=str(footprint),
            ratio=f"{each:.1f} KiB per pod" if size else "",
            aim=f"< {aim} MiB",
            met=footprint.mebibytes < aim,
        )


def crowd(node: Node, ztunnel: PlainZtunnel, pods: list[Pod]) -> float:
    """Move in all `pods` at one moment; seconds until the last was accepted."""
    node.stage(pods)
    started = time.perf_counter()
    node.move_in(pods)
    return ztunnel.accept_all([pod.uid() for pod in pods]) - started


def leave(node: Node, ztunnel: PlainZtunnel, pods: list[Pod]) -> None:
    node.delete(pods)
    ztunnel.delete_all([pod.uid() for pod in pods])
