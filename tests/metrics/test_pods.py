"""What the table's figures say of pods, in each of the states that an alert is about."""

import asyncio
import time
from collections.abc import Mapping

import pytest

from nodeagent.mesh.errors import RetryError
from nodeagent.mesh.progress import State
from nodeagent.metrics.counting import Metrics
from nodeagent.metrics.pods import show_pods
from tests.eventually import eventually
from tests.mesh.node import Bench, Node, bench
from tests.mesh.pods import SHOP, U1, a_pod, enrolled
from tests.metrics.test_counting import samples

pytestmark = pytest.mark.virtual_time


def shown(on: Bench) -> Mapping[str, float]:
    metrics = Metrics()
    show_pods(metrics, on.table)
    return samples(metrics)


def unredirected(on: Bench) -> float:
    return shown(on)["nodeagent_unredirected_pods"]


async def test_no_pods() -> None:
    """Every state is told, and nothing is old."""
    async with bench(Node()) as on:
        figures = shown(on)
        assert {figures[f'nodeagent_pods{{state="{state.value}"}}'] for state in State} == {0}
        assert unredirected(on) == 0
        assert figures["nodeagent_unredirected_oldest_age_seconds"] == 0
        assert figures["nodeagent_verified_oldest_age_seconds"] == 0


async def test_enrolled_pod() -> None:
    """It is counted as that, and was just verified."""
    async with bench(Node()) as on:
        await enrolled(on)
        figures = shown(on)
        assert figures['nodeagent_pods{state="enrolled"}'] == 1
        assert figures["nodeagent_unredirected_pods"] == 0
        held = on.workload("1").held
        assert held is not None
        held.verified = time.time() - 100
        assert shown(on)["nodeagent_verified_oldest_age_seconds"] == pytest.approx(100, abs=30)


async def test_pod_whose_netns_is_not_found() -> None:
    """Wanted, with an address, and not redirected: since it was heard of."""
    async with bench(Node()) as on:
        on.table.namespace_seen(SHOP)
        on.table.pod_seen(a_pod())
        await on.until_state("1", State.RETRYING)
        assert unredirected(on) == 1
        clock = on.workload("1").progress.clock
        assert clock is not None
        clock.began -= 100
        assert shown(on)["nodeagent_unredirected_oldest_age_seconds"] >= 100
        on.node.netns_ids[U1] = 1
        await on.until_state("1", State.ENROLLED)
        assert unredirected(on) == 0


async def test_rules_that_cannot_be_repaired() -> None:
    """A pod that was redirected once, and whose rules the kernel does not let us put back."""
    async with bench(Node()) as on:
        await enrolled(on)
        on.node.rules.clear()
        on.node.failures["ensure"] = [RetryError("somebody owns the table")] * 3
        on.table.wake(U1)
        await on.until_state("1", State.RETRYING)
        assert unredirected(on) == 1
        await on.until_state("1", State.ENROLLED)
        assert unredirected(on) == 0


async def test_ztunnel_away_is_another_matter() -> None:
    """A pod is redirected without ztunnel, too: that is the state `pending`, and no page."""
    async with bench(Node(ztunnel=None)) as on:
        on.node.netns_ids[U1] = 1
        on.table.namespace_seen(SHOP)
        on.table.pod_seen(a_pod())
        await on.until_state("1", State.PENDING)
        assert unredirected(on) == 0
        assert shown(on)['nodeagent_pods{state="pending"}'] == 1


async def test_work_that_does_not_end_holds_nothing_up() -> None:
    """A scrape reads what is known; it waits for no pod's steps, and no lock of theirs."""
    async with bench(Node()) as on:
        never = asyncio.Event()
        on.node.netns_ids[U1] = 1
        on.node.failures["ensure"] = [never]
        on.table.namespace_seen(SHOP)
        on.table.pod_seen(a_pod())
        await eventually(lambda: ("ensure", U1) in on.node.steps)
        assert unredirected(on) == 1
        never.set()
        await on.until_state("1", State.ENROLLED)


async def test_pods_that_need_not_be() -> None:
    """Not wanted, not started yet, its sandbox taken down, gone: none of them is missed."""
    async with bench(Node()) as on:
        on.table.namespace_seen(SHOP)
        on.table.pod_seen(a_pod("1", labels={}))
        on.table.pod_seen(a_pod("2", addresses=()))
        await on.until_state("2", State.WAITING)
        await enrolled(on, "3")
        on.table.sandbox_ended(on.workload("3"))
        await on.until_state("3", State.WAITING)
        await enrolled(on, "4")
        on.node.failures["ensure"] = [RetryError("gone")]
        on.table.pod_gone(a_pod("4").uid)
        assert unredirected(on) == 0
