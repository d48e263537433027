"""A pod's sandboxes: handed over by the CNI plugin, ended, and made again under the same UID."""

from dataclasses import replace

import pytest

from nodeagent.mesh import enrollment, worker
from nodeagent.mesh.annotation import Redirection
from nodeagent.mesh.progress import State
from tests.eventually import eventually
from tests.mesh.node import Node, bench
from tests.mesh.pods import SANDBOX, SHOP, U1, a_pod, enrolled

pytestmark = pytest.mark.virtual_time


async def test_sandbox_made_again() -> None:
    """L14: the same UID in a new netns is enrolled there, and the old one is released."""
    async with bench(Node()) as on:
        await enrolled(on)
        on.node.netns_ids[U1] = 2
        on.table.wake(U1)
        await on.settled()
        assert on.node.ztunnel == {U1: 2}
        assert [held.id for held in on.node.open] == [2]


async def test_sandbox_that_is_handed_over_needs_no_address_from_the_cluster() -> None:
    """A pod is enrolled by what the CNI plugin tells, before the API server has an address."""
    async with bench(Node()) as on:
        on.table.namespace_seen(SHOP)
        on.table.pod_seen(a_pod(addresses=()))
        await on.until_state("1", State.WAITING)
        on.table.handed_over(on.workload("1"), SANDBOX)
        await on.until_state("1", State.ENROLLED)
        assert on.node.ztunnel == {U1: 7}
        assert on.workload("1").pod.addresses == SANDBOX.addresses


async def test_sandbox_that_is_handed_over_is_not_reported() -> None:
    """L19: a running pod's new sandbox waits for us: its containers are not there yet."""
    async with bench(Node()) as on:
        on.table.namespace_seen(SHOP)
        on.table.pod_seen(a_pod(addresses=(), phase="Running"))
        on.table.handed_over(on.workload("1"), SANDBOX)
        await on.until_state("1", State.ENROLLED)
        assert "unprotected" not in on.node.did("1")


async def test_newest_sandbox_counts() -> None:
    """L14: a retried ADD brings another netns under the same UID; the old one is released."""
    async with bench(Node()) as on:
        on.table.namespace_seen(SHOP)
        on.table.pod_seen(a_pod(addresses=()))
        on.table.handed_over(on.workload("1"), SANDBOX)
        await on.until_state("1", State.ENROLLED)
        on.table.handed_over(on.workload("1"), replace(SANDBOX, container_id="c2", netns="8"))
        await eventually(lambda: on.node.ztunnel == {U1: 8})
        await on.settled()
        assert [held.id for held in on.node.open] == [8]


async def test_sandbox_that_ends_is_released_and_the_next_one_taken() -> None:
    """A descriptor would keep a dead sandbox's namespace and its rules alive."""
    async with bench(Node(netns_ids={U1: 1})) as on:
        on.table.namespace_seen(SHOP)
        on.table.pod_seen(a_pod(addresses=()))
        on.table.handed_over(on.workload("1"), SANDBOX)
        await on.until_state("1", State.ENROLLED)
        on.table.sandbox_ended(on.workload("1"))
        await on.until_state("1", State.WAITING)
        assert (on.node.open, on.node.ztunnel, on.node.probed) == ([], {}, set())
        on.table.handed_over(on.workload("1"), replace(SANDBOX, container_id="c2", netns="8"))
        await on.until_state("1", State.ENROLLED)
        assert on.node.written[U1] == [Redirection.ENABLED], "L41: not taken off in between"


async def test_next_sandbox_may_come_past_the_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    """L3: with the plugin dropped from the chain, nobody hands the next sandbox over."""
    for module in (enrollment, worker):
        monkeypatch.setattr(module, "SANDBOX_TEARDOWN", 0.05)
    async with bench(Node(netns_ids={U1: 1})) as on:
        on.table.namespace_seen(SHOP)
        on.table.pod_seen(a_pod())
        await on.until_state("1", State.ENROLLED)
        on.table.sandbox_ended(on.workload("1"))
        await on.until_state("1", State.WAITING)
        on.node.netns_ids[U1] = 2
        on.table.wake(U1)  # an echo of our own patch, say
        await on.until_state("1", State.ENROLLED)
        assert on.node.did("1").count("find") == 2
        assert [held.id for held in on.node.open] == [2]
        on.table.pod_seen(a_pod(deleting=True))
        await on.settled()
        assert on.workload("1").state is State.ENROLLED, "it runs until its containers have ended"
        assert [held.id for held in on.node.open] == [2]


async def test_pod_that_is_gone_between_two_sandboxes_is_forgotten() -> None:
    """A pod that is deleted by force, of which no watch has said before that it is deleting."""
    async with bench(Node()) as on:
        await enrolled(on)
        on.table.sandbox_ended(on.workload("1"))
        await on.until_state("1", State.WAITING)
        on.table.pod_gone(U1)
        await eventually(lambda: len(on.table) == 0)


async def test_sandbox_of_a_deleted_pod_ends_without_another_patch() -> None:
    """What is about to vanish is not annotated anew."""
    async with bench(Node()) as on:
        on.table.namespace_seen(SHOP)
        on.table.pod_seen(a_pod(addresses=()))
        on.table.handed_over(on.workload("1"), SANDBOX)
        await on.until_state("1", State.ENROLLED)
        on.table.pod_seen(a_pod(addresses=(), deleting=True))
        on.table.sandbox_ended(on.workload("1"))
        await on.until_state("1", State.WAITING)
        assert on.node.annotations[U1] is Redirection.ENABLED
