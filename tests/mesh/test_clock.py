"""What the heart tells of each enrollment: by which way, through which phases, once."""

import pytest

from nodeagent.mesh.errors import RetryError
from nodeagent.mesh.progress import State
from nodeagent.observer import Observer, Phase, Way
from tests.mesh.node import Node, bench
from tests.mesh.pods import AMBIENT, SANDBOX, SHOP, U1, a_pod, enrolled

pytestmark = pytest.mark.virtual_time


class Told(Observer):
    def __init__(self) -> None:
        self.all: list[tuple[object, ...]] = []

    def enrollment_reached(self, phase: Phase, way: Way, seconds: float) -> None:
        assert seconds >= 0
        self.all.append((phase, way))

    def enrolled(self, way: Way, seconds: float) -> None:
        assert seconds >= 0
        self.all.append(("enrolled", way))

    def ran_unprotected(self, seconds: float) -> None:
        assert seconds >= 0
        self.all.append(("unprotected",))

    def pod_repaired(self) -> None:
        self.all.append(("repaired",))


def whole(way: Way) -> list[tuple[object, ...]]:
    return [*((phase, way) for phase in Phase), ("enrolled", way)]


async def test_each_way_in() -> None:
    """A pod that was there at the start, one that came later, one that the plugin brought."""
    told = Told()
    async with bench(Node(), observer=told) as on:
        await enrolled(on, "1")
        on.table.synced()
        assert told.all == whole(Way.START)
        told.all.clear()
        await enrolled(on, "2")
        assert told.all == whole(Way.WATCH)
        told.all.clear()
        on.table.pod_seen(a_pod("3", addresses=()))
        await on.until_state("3", State.WAITING)
        assert told.all == []
        on.table.handed_over(on.workload("3"), SANDBOX)
        await on.until_state("3", State.ENROLLED)
        assert told.all == whole(Way.CNI)


async def test_failures_and_repairs_are_no_second_enrollment() -> None:
    """Steps that are run again tell what they have reached once; a repair is told as such."""
    told = Told()
    async with bench(Node(), observer=told) as on:
        on.node.failures["ensure"] = [RetryError("busy"), RetryError("busy")]
        await enrolled(on)
        assert told.all == whole(Way.START)
        told.all.clear()
        on.node.rules.clear()
        on.table.wake(U1)
        await on.settled()
        assert told.all == [("repaired",)]


async def test_back_into_the_mesh_is_a_new_enrollment() -> None:
    """A pod that was taken out and wanted again is timed anew."""
    told = Told()
    async with bench(Node(), observer=told) as on:
        on.table.synced()
        await enrolled(on)
        on.table.pod_seen(a_pod(labels={}))
        await on.until_state("1", State.OUTSIDE)
        told.all.clear()
        on.table.pod_seen(a_pod(labels=AMBIENT))
        await on.until_state("1", State.ENROLLED)
        assert told.all == whole(Way.WATCH)


async def test_pod_that_ran_unprotected() -> None:
    """It was wanted and running when it was first seen, and no rules of ours were there."""
    told = Told()
    async with bench(Node(), observer=told) as on:
        on.node.netns_ids[U1] = 1
        on.table.namespace_seen(SHOP)
        on.table.pod_seen(a_pod(phase="Running"))
        await on.until_state("1", State.ENROLLED)
        assert told.all.count(("unprotected",)) == 1
