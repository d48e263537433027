"""When a pod's steps run again, and what is said of a pod for which they fail."""

import asyncio
import time
from collections.abc import MutableMapping
from typing import Any

import pytest
from structlog.testing import capture_logs

from nodeagent.mesh import worker
from nodeagent.mesh.backoff import FIRST
from nodeagent.mesh.errors import GiveUpError, RetryError, TransientError
from nodeagent.mesh.pod import PodUID
from nodeagent.mesh.progress import State
from tests.eventually import eventually
from tests.mesh.node import Node, bench
from tests.mesh.pods import AMBIENT, ENABLED, SHOP, U1, a_pod, enrolled

pytestmark = pytest.mark.virtual_time


@pytest.mark.parametrize("fault", ["refuses", "is away after a reboot", "does not listen"])
async def test_enabled_pod_that_is_not_served_is_reported(
    fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """L41: where the truth differs from `enabled` for a while, an event says so, once."""
    monkeypatch.setattr(worker, "REPORT_BROKEN_AFTER", 0.02)
    node = Node(netns_ids={U1: 1})
    match fault:
        case "refuses":
            node.refusing = True
        case "is away after a reboot":
            node.ztunnel = None
        case _:
            node.rules, node.silent = {1}, (15001,)
    async with bench(node, verify_interval=0.01) as on:
        on.table.namespace_seen(SHOP)
        on.table.pod_seen(a_pod(annotations=ENABLED))

        def reports() -> list[str]:
            return [step for step in node.did("1") if step.startswith("broken: ")]

        await eventually(lambda: bool(reports()))
        looks = len(node.steps)
        await eventually(lambda: len(node.steps) > looks + 10)
        assert len(reports()) == 1
        assert node.written == {}
        node.refusing, node.silent = False, ()
        node.ztunnel = {} if node.ztunnel is None else node.ztunnel
        await on.until_state("1", State.ENROLLED)
        node.refusing = True
        await eventually(lambda: len(reports()) == 2)


async def test_short_gap_is_not_reported() -> None:
    """L41: a ztunnel that restarts is no event on each of its pods."""
    async with bench(Node(silent=(15001,)), verify_interval=0.01) as on:
        await enrolled(on)
        await on.until_state("1", State.UNSERVED)
        on.node.silent = ()
        await on.until_state("1", State.ENROLLED)
        assert not [step for step in on.node.did("1") if step.startswith("broken")]


async def test_lost_rules_are_found_and_repaired() -> None:
    """L1: an enrolled pod is compared with intent all its life; what was lost comes back."""
    async with bench(Node(), verify_interval=0.01) as on:
        await enrolled(on)
        on.node.rules.clear()
        await eventually(lambda: bool(on.node.rules))
        await on.until_state("1", State.ENROLLED)
        assert on.repairs("1") == 1


async def test_drift_is_looked_at_immediately() -> None:
    """What the watch hears is looked at immediately, and repaired."""
    async with bench(Node()) as on:
        await enrolled(on)
        on.node.rules.clear()
        heard = asyncio.get_running_loop().time()
        on.table.drifted(U1)
        await eventually(lambda: on.node.rules == {1})
        assert asyncio.get_running_loop().time() - heard < FIRST
        assert on.repairs("1") == 1
        on.table.drifted(PodUID("unknown"))


async def test_drift_without_end_is_looked_at_less_often() -> None:
    """Two components never fight at full speed; the last change is looked at all the same."""
    async with bench(Node()) as on:
        await enrolled(on)
        on.node.steps.clear()
        for _ in range(200):
            on.node.rules.clear()
            on.table.drifted(U1)
            await asyncio.sleep(0.001)
        assert on.node.did("1").count("ensure") < 20
        await eventually(lambda: on.node.rules == {1})


async def test_fault_that_no_other_try_can_help() -> None:
    """It is reported once and rests; a change of the pod starts it anew."""
    node = Node(netns_ids={U1: 1})
    node.failures["find"] = [GiveUpError("is the host's")] * 2
    async with bench(node) as on:
        on.table.namespace_seen(SHOP)
        on.table.pod_seen(a_pod())
        await on.until_state("1", State.FAILED)
        await on.settled()
        assert node.did("1") == ["find"]
        on.table.pod_seen(a_pod(labels=AMBIENT | {"v": "2"}))
        await on.settled()
        assert node.failed_for_good == ["shop/web: is the host's"]
        on.table.pod_seen(a_pod(labels=AMBIENT | {"v": "3"}))
        await on.until_state("1", State.ENROLLED)


async def test_failure_of_ours_is_not_the_end() -> None:
    """An exception that nobody foresaw is one pod's retry, not the agent's end."""
    node = Node(netns_ids={U1: 1})
    node.failures["ensure"] = [ZeroDivisionError("a fault")]
    async with bench(node) as on:
        await enrolled(on)


def warnings(logs: list[MutableMapping[str, Any]]) -> list[str]:
    return [line["event"] for line in logs if line["log_level"] not in {"debug", "info"}]


async def test_end_of_a_sandbox_is_no_warning() -> None:
    """`lo` goes down before the runtime's DEL comes; what the watch makes of it passes."""
    node = Node()
    async with bench(node) as on:
        await enrolled(on)
        node.failures["ensure"] = [TransientError("the loopback interface is down")] * 100
        with capture_logs() as logs:
            on.table.drifted(U1)
            await on.until_state("1", State.RETRYING)
            on.table.sandbox_ended(on.workload("1"))
            await on.until_state("1", State.WAITING)
        assert warnings(logs) == []


async def test_faults_of_a_pod_that_is_being_deleted_are_no_warnings() -> None:
    """A pod whose containers have ended loses its namespace: nobody has to do anything."""
    async with bench(Node()) as on:
        await enrolled(on)
        with capture_logs() as logs:
            on.node.failures["find"] = [RetryError("not found")] * 5
            on.table.pod_seen(a_pod(deleting=True))
            await on.until_state("1", State.RETRYING)
            await eventually(lambda: not on.node.failures["find"])
            on.table.pod_gone(U1)
            await eventually(lambda: len(on.table) == 0)
        assert warnings(logs) == []


async def test_what_should_pass_and_does_not_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pod whose `lo` somebody has taken down for good is said, once."""
    loop, begun = asyncio.get_running_loop(), time.time()
    monkeypatch.setattr(time, "time", lambda: begun + loop.time())
    node = Node(netns_ids={U1: 1})
    node.failures["ensure"] = [TransientError("the loopback interface is down")] * 15
    async with bench(node) as on:
        with capture_logs() as logs:
            await enrolled(on)
        assert warnings(logs) == ["will try again"]
