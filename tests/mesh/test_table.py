"""The table of workloads, without anybody who works on them."""

import pytest

from nodeagent.mesh.pod import PodUID
from tests.mesh.node import Node, bench
from tests.mesh.pods import a_pod

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
