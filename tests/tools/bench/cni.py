"""The plugin's whole call, from exec to exit: what it adds to a pod's start."""

import os
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from nodeagent.admin.client import NoAgentError, fetch_workloads
from tests.tools.bench.cni_call import Call, alone, at_once, bare_server
from tests.tools.bench.node import Node, Pod
from tests.tools.bench.programs import Agent
from tests.tools.bench.report import Figure, median, milliseconds, percentile99
from tests.tools.bench.ztunnel import PlainZtunnel

_NAMESPACE = "default"  # of manifests that name none
_FLOOR, _BARE, _OUTSIDE, _INSIDE = (
    "an exec of `/bin/true` (floor)",
    "the plugin's binary, answered at once by a bare server",
    "the plugin's call, pod not in the mesh",
    "the plugin's call, pod in the mesh",
)
_AIMS = {_OUTSIDE: 0.003, _INSIDE: 0.015}
"""Seconds in the median, one call at a time."""
_REST = 0.03
"""Seconds in which the agent finishes what the runtime does not wait for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """How much is measured."""

    samples: int
    crowd: int
    """Calls at once."""
    repeats: int


def figures(node: Node, counts: Counts) -> Iterator[Figure]:
    """All of them, from one agent; what is compared is called in turns."""
    with Agent(node) as agent, PlainZtunnel(agent) as ztunnel:
        outside = _made(node, agent, counts.samples, "none")
        inside = _made(node, agent, counts.samples, "ambient")
        times: defaultdict[str, list[float]] = defaultdict(list)
        bare = os.path.join(node.directory, "bare.sock")
        with bare_server(bare):
            for one, other in zip(outside, inside, strict=True):
                times[_FLOOR] += alone([Call.true()])
                times[_BARE] += alone([_add(one, bare)])
                times[_OUTSIDE] += alone([_add(one, agent.plugin)])
                times[_INSIDE] += alone([_add(other, agent.plugin)])
                time.sleep(_REST)
        for what in times:
            yield _alone_figure(what, times)
        crowds: defaultdict[str, list[float]] = defaultdict(list)
        for _ in range(counts.repeats):
            strangers = _made(node, agent, counts.crowd, "none")
            members = _made(node, agent, counts.crowd, "ambient")
            crowds[_FLOOR] += at_once([Call.true()] * counts.crowd)
            crowds[_OUTSIDE] += at_once([_add(pod, agent.plugin) for pod in strangers])
            crowds[_INSIDE] += at_once([_add(pod, agent.plugin) for pod in members])
            outside += strangers
            inside += members
        for what, taken in crowds.items():
            yield Figure(
                what=f"{what}, {counts.crowd} at once",
                value=_value(taken),
                ratio=f"{median(taken) / median(times[what]):.0f} times one alone",
            )
        if ztunnel.accepted.keys() != {pod.uid() for pod in inside}:
            raise RuntimeError("not exactly the pods of the mesh are in it")
        node.delete([*outside, *inside])


def _made(node: Node, agent: Agent, count: int, mode: str) -> list[Pod]:
    """Pods that the agent has heard of, and the runtime is about to start."""
    pods = node.pods(count)
    node.stage(pods, mode=mode, pending=True)
    node.move_in(pods)
    wanted = {pod.uid() for pod in pods}

    def known() -> bool:
        try:
            return wanted <= {row["uid"] for row in fetch_workloads(agent.admin)}
        except NoAgentError:
            return False

    agent.until(known, "news of the pods", every=0.05)
    agent.settled()
    return pods


def _add(pod: Pod, plugin: str) -> Call:
    return Call.add(pod, _NAMESPACE, plugin)


def _alone_figure(what: str, times: Mapping[str, list[float]]) -> Figure:
    middle, binary = median(times[what]), median(times[_BARE])
    aim = _AIMS.get(what)
    ratio = ""
    if what == _BARE:
        ratio = f"{binary / median(times[_FLOOR]):.2f} times the floor"
    elif aim:
        ratio = f"{binary / middle:.0%} of it the binary's own"
    return Figure(
        what=what,
        value=_value(times[what]),
        ratio=ratio,
        aim=f"median < {milliseconds(aim)}" if aim else "",
        met=middle < aim if aim else None,
    )


def _value(taken: list[float]) -> str:
    return (
        f"median {milliseconds(median(taken))}, 99th percentile {milliseconds(percentile99(taken))}"
    )
