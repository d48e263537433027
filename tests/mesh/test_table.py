"""The table of workloads: what it notes, and whom it calls."""

import pytest

from nodeagent.mesh.eligibility import Policy, Wanted
from nodeagent.mesh.pod import Namespace, PodUID
from nodeagent.mesh.progress import State
from nodeagent.mesh.table import Table
from tests.eventually import eventually
from tests.mesh.node import Held, Node, bench
from tests.mesh.pods import AMBIENT, SANDBOX, SHOP, U1, a_pod, enrolled

pytestmark = pytest.mark.virtual_time


async def test_name_leads_to_every_pod_that_has_it() -> None:
    """L38: two pods of one name are two UIDs, and both are told of, the newer one first."""
    async with bench(Node()) as on:
        on.table.pod_seen(a_pod("1"))
        on.table.pod_seen(a_pod("2"))
        assert list(on.table.named("shop", "web")) == [on.workload("2"), on.workload("1")]
        on.table.pod_gone(PodUID("2"))
        assert list(on.table.named("shop", "web")) == [on.workload("1")]
        assert list(on.table.named("shop", "other")) == []


async def test_workload_that_was_forgotten_is_in_nobodys_way() -> None:
    """Who still has the workload of a pod that is gone wakes nobody who works on its successor."""
    async with bench(Node()) as on:
        await enrolled(on)
        forgotten = on.workload("1")
        on.table.pod_gone(U1)
        await eventually(lambda: len(on.table) == 0)
        on.table.handed_over(forgotten, SANDBOX)
        on.table.pod_seen(a_pod())
        await on.until_state("1", State.ENROLLED)
        assert on.workload("1") is not forgotten


async def test_pods_are_decided_for_when_their_namespace_is_seen() -> None:
    """A namespace's labels may come after its pods, change, and go; each time its pods are told."""
    table = Table[Held](Policy())
    table.pod_seen(a_pod(labels={}))
    workload = table.get(U1)
    assert workload is not None

    def wanted() -> Wanted:
        return workload.decision.wanted

    assert wanted() is Wanted.UNKNOWN
    table.namespace_seen(Namespace("shop", AMBIENT))
    assert wanted() is Wanted.YES
    table.namespace_seen(SHOP)
    assert wanted() is Wanted.NO
    table.namespace_gone("shop")
    assert wanted() is Wanted.UNKNOWN


async def test_facts_of_the_first_list() -> None:
    """L19: what was there before the agent, and what runs unprotected, is noted for good."""
    table = Table[Held](Policy())
    table.pod_seen(a_pod("1", phase="Running"))
    table.synced()
    table.pod_seen(a_pod("2", phase="Pending"))
    table.pod_seen(a_pod("2", phase="Running"))
    noted = {each.uid: (each.existing, each.ran_unprotected) for each in table}
    assert noted == {"1": (True, True), "2": (False, False)}
