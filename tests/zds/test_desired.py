"""What ztunnels should have: who waits for an answer, and who is called for one."""

import asyncio
from collections.abc import Callable

import pytest

from nodeagent.mesh.pod import PodUID
from nodeagent.netns.netns import Netns
from nodeagent.zds.desired import DesiredWorkload, DesiredWorkloads

pytestmark = pytest.mark.virtual_time

MakeNetns = Callable[[], Netns]
U1, U2 = PodUID("1"), PodUID("2")


@pytest.fixture
def news() -> list[str]:
    return []


@pytest.fixture
def workload(make_netns: MakeNetns, news: list[str]) -> DesiredWorkload:
    return DesiredWorkload(b"", make_netns(), lambda: news.append("answer"))


async def test_answer_goes_to_who_waits(workload: DesiredWorkload, news: list[str]) -> None:
    """Whoever waits gets the answer, and nobody else is called for it."""
    workload.await_answer()
    waiting = asyncio.create_task(workload.answered())
    await asyncio.sleep(1)
    assert not waiting.done()
    workload.take_answer("cannot bind")
    assert await waiting == "cannot bind"
    assert news == []


def test_changed_answer_is_news(workload: DesiredWorkload, news: list[str]) -> None:
    """Where nobody waits, as after a snapshot, a changed answer is news, and the same is none."""
    workload.take_answer("")
    workload.take_answer("")
    assert news == ["answer"]
    workload.take_answer("cannot bind")
    assert news == ["answer"] * 2


async def test_answer_to_what_was_replaced_counts_for_nothing(
    make_netns: MakeNetns, workload: DesiredWorkload, news: list[str]
) -> None:
    """L14: it is under way when the pod's netns is replaced; whoever waits goes on without."""
    desired = DesiredWorkloads(lambda: ())
    desired.put(U1, workload)
    workload.await_answer()
    waiting = asyncio.create_task(workload.answered())
    newer = DesiredWorkload(b"", make_netns(), lambda: news.append("newer"))
    desired.put(U1, newer)
    workload.take_answer("")
    assert await waiting is None
    assert (desired.get(U1), news) == (newer, [])


def test_snapshot_names_what_is_kept_and_what_is_to_be_added(workload: DesiredWorkload) -> None:
    """L31: each once, whether or not there is anything to hand over for it."""
    kept = [U1]
    desired = DesiredWorkloads(lambda: kept)
    desired.put(U2, workload)
    assert sorted(desired) == [U1, U2]
    assert (desired.to_add(), desired.get(U1)) == ([U2], None)
    kept.append(U2)
    assert sorted(desired) == [U1, U2]
    desired.remove(U2)
    assert U2 in desired, "it is kept"
    kept.clear()
    assert list(desired) == []
