"""What the agent holds after thousands of enrollments and removals."""

from collections.abc import Iterator, Sequence

from tests.tools.bench.node import Node, Pod
from tests.tools.bench.programs import Agent, Footprint
from tests.tools.bench.report import Figure
from tests.tools.bench.ztunnel import PlainZtunnel

_GROWTH_AIM = 1.0
"""MiB: a hundred bytes left behind by each enrollment would be about as much."""


def figures(node: Node, *, crowd: int, marks: Sequence[int]) -> Iterator[Figure]:
    """Compare the agent after each of `marks` enrollments, in crowds, with nobody enrolled."""
    pods = node.pods(crowd)
    first: Footprint | None = None
    done = 0
    with Agent(node) as agent:
        for mark in marks:
            while done < mark:
                _come_and_go(node, agent, pods, life=done // crowd)
                done += crowd
            footprint = agent.settled()
            yield _figure(done, first, footprint)
            first = first or footprint


def _figure(done: int, first: Footprint | None, now: Footprint) -> Figure:
    what = f"the agent's memory after {done:,} enrollments and removals"
    if first is None:
        return Figure(what=what, value=str(now))
    grown = now.mebibytes - first.mebibytes
    return Figure(
        what=what,
        value=str(now),
        ratio=f"{grown:+.2f} MiB, {now.descriptors - first.descriptors:+} descriptors",
        aim=f"≤ +{_GROWTH_AIM:g} MiB, +0 descriptors",
        met=grown <= _GROWTH_AIM and now.descriptors <= first.descriptors,
    )


def _come_and_go(node: Node, agent: Agent, pods: list[Pod], *, life: int) -> None:
    """Enroll `pods` as new ones, and have them go the way whose turn it is."""
    uids = [pod.uid(life) for pod in pods]
    # A ztunnel for each crowd: those that come and go must leave nothing either.
    with PlainZtunnel(agent) as ztunnel:
        node.stage(pods, life=life)
        node.move_in(pods)
        ztunnel.accept_all(uids)
        if life % 2:
            node.delete(pods)
        else:
            # Still running, but out of the mesh: their rules are removed, too.
            node.stage(pods, life=life, mode="none")
            node.move_in(pods)
        ztunnel.delete_all(uids)
