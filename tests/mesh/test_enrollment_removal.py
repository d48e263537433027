"""The steps that take a pod out of the mesh, and what an earlier agent has left."""

import pytest

from nodeagent.mesh.annotation import Redirection
from nodeagent.mesh.errors import RetryError
from nodeagent.mesh.pod import SIDECAR_STATUS, PodUID
from nodeagent.mesh.progress import State
from tests.eventually import eventually
from tests.mesh.node import Node, bench
from tests.mesh.pods import ENABLED, SHOP, U1, a_pod, enrolled

pytestmark = pytest.mark.virtual_time


async def test_order_of_a_removal() -> None:
    """A pod that leaves while it runs: probes, rules, ztunnels, annotation, descriptor."""
    async with bench(Node()) as on:
        await enrolled(on)
        on.node.steps.clear()
        on.table.pod_seen(a_pod(labels={}))
        await on.until_state("1", State.OUTSIDE)
        assert on.node.did("1") == ["unprobe", "remove", "withdraw", "report None"]
        assert on.node.open == []


async def test_leaving_pod_keeps_what_is_open() -> None:
    """L28: the annotation goes first, nothing new is sent, and rules go when all has ended."""
    node = Node(connections=2)
    async with bench(node, removal_grace=60) as on:
        await enrolled(on)
        node.steps.clear()
        on.table.pod_seen(a_pod(labels={}))
        await on.until_state("1", State.LEAVING)
        assert node.did("1") == ["report None", "release"]
        assert (node.rules, node.ztunnel) == ({1}, {U1: 1})
        node.connections = 0
        on.table.wake(U1)
        await on.until_state("1", State.OUTSIDE)
        assert (node.rules, node.ztunnel, node.open) == (set(), {}, [])


async def test_leaving_pod_is_not_waited_for_without_end() -> None:
    """L28: when the deadline has passed, what is still open is cut."""
    node = Node(connections=2)
    async with bench(node, removal_grace=0.05) as on:
        await enrolled(on)
        on.table.pod_seen(a_pod(labels={}))
        await on.until_state("1", State.OUTSIDE)
        assert node.did("1").count("release") == 2
        assert node.rules == set()


async def test_leaving_pod_that_comes_back() -> None:
    """A label that comes back while connections are still open enrolls the pod again."""
    node = Node(connections=2)
    async with bench(node, removal_grace=60) as on:
        await enrolled(on)
        on.table.pod_seen(a_pod(labels={}))
        await on.until_state("1", State.LEAVING)
        on.table.pod_seen(a_pod())
        await on.until_state("1", State.ENROLLED)
        assert node.annotations == {U1: Redirection.ENABLED}
        assert on.repairs("1") == 0


async def test_pod_that_is_gone_is_not_entered() -> None:
    """ztunnel drops a pod that is gone, and it is released; its netns is left alone."""
    async with bench(Node()) as on:
        await enrolled(on)
        on.node.steps.clear()
        on.table.pod_gone(U1)
        await on.settled()
        assert on.node.did("1") == ["unprobe", "withdraw"]
        assert (on.node.open, len(on.table)) == ([], 0)
        assert on.node.annotations == {}


async def test_rules_that_a_former_agent_left() -> None:
    """A pod whose label came off while no agent ran is found at the start and set free."""
    node = Node(netns_ids={U1: 1}, rules={1})
    async with bench(node) as on:
        on.table.namespace_seen(SHOP)
        on.table.pod_seen(a_pod(labels={}))
        on.table.synced()
        await on.until_state("1", State.OUTSIDE)
        assert (node.rules, node.open) == (set(), [])


async def test_pod_that_was_never_labeled() -> None:
    """Fail safe: it is not looked for and not entered, whatever it says of itself."""
    async with bench(Node(netns_ids={U1: 1, PodUID("2"): 2})) as on:
        on.table.synced()
        on.table.namespace_seen(SHOP)
        on.table.pod_seen(a_pod(labels={}))
        on.table.pod_seen(a_pod("2", labels={}, annotations=ENABLED))
        await on.until_state("1", State.OUTSIDE)
        await on.until_state("2", State.OUTSIDE)
        assert on.node.did("1") == ["withdraw"]
        assert on.node.did("2") == ["withdraw", "report None"]


@pytest.mark.parametrize("annotations", [{}, ENABLED])
async def test_pod_with_a_sidecar_is_never_entered(annotations: dict[str, str]) -> None:
    """L30: what redirects a pod with a sidecar is the sidecar's, also at the agent's start."""
    async with bench(Node(netns_ids={U1: 1}, rules={1})) as on:
        on.table.namespace_seen(SHOP)
        on.table.pod_seen(a_pod(annotations={SIDECAR_STATUS: "{}", **annotations}))
        await on.until_state("1", State.OUTSIDE)
        assert not {"find", "ensure", "inspect"} & set(on.node.did("1"))
        assert (on.node.rules, on.table.kept()) == ({1}, [])


@pytest.mark.parametrize("step", ["remove", "release"])
async def test_pod_that_never_was_in_the_mesh_is_not_looked_through_for_ever(step: str) -> None:
    """L30: a look for an earlier agent's rules that fails is no error of a pod without any."""
    node = Node(netns_ids={U1: 1})
    node.failures[step] = [RetryError("refused")] * 100
    async with bench(node, removal_grace=60) as on:
        on.table.namespace_seen(SHOP)
        on.table.pod_seen(a_pod(labels={}))
        await on.until_state("1", State.OUTSIDE)
        assert (node.open, on.table.kept()) == ([], [])


@pytest.mark.parametrize("step", ["remove", "release"])
async def test_pod_that_was_in_the_mesh_is_freed_however_long_it_takes(step: str) -> None:
    """L30: nothing of ours stays because a look has failed a few times."""
    node = Node(netns_ids={U1: 1}, rules={1})
    node.failures[step] = [RetryError("refused")] * 7
    async with bench(node, removal_grace=60) as on:
        on.table.namespace_seen(SHOP)
        on.table.pod_seen(a_pod(labels={}, annotations=ENABLED))
        await on.until_state("1", State.OUTSIDE)
        assert (node.rules, node.written[U1]) == (set(), [None])


async def test_pod_of_which_only_a_part_was_redirected_is_freed() -> None:
    """L30: what the agent has begun itself it takes out, however long that takes."""
    node = Node(netns_ids={U1: 1}, rules={1})
    node.failures["ensure"] = [RetryError("no route")] * 100
    node.failures["remove"] = [RetryError("refused")] * 7
    async with bench(node) as on:
        on.table.namespace_seen(SHOP)
        on.table.pod_seen(a_pod())
        await eventually(lambda: on.workload("1").progress.attempts > 5)
        on.table.pod_seen(a_pod(labels={}))
        await on.until_state("1", State.OUTSIDE)
        assert node.rules == set()


async def test_pod_that_left_without_an_address_waits_for_one() -> None:
    """L9: its rules stay until its netns can be found, and ztunnel keeps it meanwhile."""
    node = Node(netns_ids={U1: 1}, rules={1})
    async with bench(node) as on:
        on.table.namespace_seen(SHOP)
        on.table.pod_seen(a_pod(labels={}, annotations=ENABLED, addresses=()))
        await on.until_state("1", State.WAITING)
        await on.settled()
        assert (node.steps, on.table.kept()) == ([], [U1])
        on.table.pod_seen(a_pod(labels={}, annotations=ENABLED))
        await on.until_state("1", State.OUTSIDE)
        assert (node.rules, on.table.kept()) == (set(), [])
