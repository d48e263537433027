"""Many pods at once, and the release of all of them."""

import asyncio

import pytest

from nodeagent.mesh import enrollment
from nodeagent.mesh.annotation import Redirection
from nodeagent.mesh.pod import PodUID
from nodeagent.mesh.progress import State
from tests.mesh.node import Node, bench
from tests.mesh.pods import SHOP, U1, a_pod, enrolled

pytestmark = pytest.mark.virtual_time


async def test_one_bad_pod_delays_nobody() -> None:
    """L13: while one pod fails again and again, others are enrolled."""
    async with bench(Node(netns_ids={PodUID("2"): 2})) as on:
        on.table.namespace_seen(SHOP)
        on.table.pod_seen(a_pod("1"))
        await on.until_state("1", State.RETRYING)
        on.table.pod_seen(a_pod("2"))
        await on.until_state("2", State.ENROLLED)


async def test_thousands_at_the_same_moment() -> None:
    """L5: three thousand pods that come at once are all enrolled, each once."""
    uids = [str(n) for n in range(3000)]
    node = Node(netns_ids={PodUID(uid): int(uid) for uid in uids})
    async with bench(node) as on:
        on.table.namespace_seen(SHOP)
        for uid in uids:
            on.table.pod_seen(a_pod(uid))
        for uid in uids:
            await on.until_state(uid, State.ENROLLED)
        assert len(node.steps) == 5 * len(uids)


async def test_same_name_is_another_pod() -> None:
    """Deleted and created again under its name: late news of the old one hurts nobody."""
    async with bench(Node(netns_ids={U1: 1, PodUID("2"): 2})) as on:
        await enrolled(on, "1")
        on.table.pod_seen(a_pod("2"))
        on.table.pod_gone(U1)
        await on.settled()
        assert on.node.ztunnel == {"2": 2}


async def test_order_of_a_release(monkeypatch: pytest.MonkeyPatch) -> None:
    """At an uninstall peers hear first: annotation, time to hear, rules, ztunnels, probes last."""
    monkeypatch.setattr(enrollment, "ANNOTATION_PROPAGATION", 0.05)
    node = Node(undelivered={U1})
    async with bench(node) as on:
        await enrolled(on)
        on.node.steps.clear()
        releasing = asyncio.create_task(on.reconciler.release(5))
        await on.until_state("1", State.RETRYING)
        assert node.did("1") == ["report None"], "the API has not taken it yet"
        node.undelivered.clear()
        assert await releasing == []
        assert node.did("1") == [
            "report None", "release", "release", "remove", "withdraw", "unprobe"
        ]  # fmt: skip
        assert (node.rules, node.open, node.probed) == (set(), [], set())
        on.table.pod_seen(a_pod("2"))
        await on.until_state("2", State.OUTSIDE)


async def test_release_that_the_api_does_not_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peers that cannot be told send HBONE still: such a pod stays in the mesh, as it was."""
    monkeypatch.setattr(enrollment, "ANNOTATION_PROPAGATION", 0.0)
    node = Node(undelivered={U1})
    async with bench(node) as on:
        await enrolled(on)
        [workload] = await on.reconciler.release(0.1)
        assert workload.uid == U1
        assert (node.rules, node.ztunnel, node.probed) == ({1}, {U1: 1}, {U1})
        assert node.annotations == {U1: Redirection.ENABLED}


async def test_release_makes_no_promise() -> None:
    """A pod that no ztunnel has accepted, and that cannot be told of, stays `pending`."""
    node = Node(netns_ids={U1: 1}, ztunnel=None, undelivered={U1})
    async with bench(node) as on:
        on.table.namespace_seen(SHOP)
        on.table.pod_seen(a_pod())
        await on.until_state("1", State.PENDING)
        assert len(await on.reconciler.release(0.1)) == 1
        assert node.annotations == {U1: Redirection.PENDING}
