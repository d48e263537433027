"""What ztunnels are sent, in ordinary life."""

import asyncio
from collections.abc import Callable

import pytest

from nodeagent.mesh.errors import GiveUpError, RefusedError
from nodeagent.mesh.pod import Pod, PodUID
from nodeagent.netns.netns import Netns
from tests.zds.conftest import Served, a_pod
from tests.zds.model import OK, Mood

pytestmark = pytest.mark.virtual_time

MakeNetns = Callable[[], Netns]


async def test_snapshot_has_every_offer(served: Served, make_netns: MakeNetns) -> None:
    """A new ztunnel gets an add with its netns, or a keep, for each pod, then the end."""
    one = make_netns()
    assert not await served.agent.offer(a_pod("1"), one)
    served.kept.add(PodUID("2"))
    ztunnel = await served.connected()
    assert ztunnel.requests == [("add", "1"), ("keep", "2"), ("snapshot_sent", "")]
    assert ztunnel.workloads == {"1": one.id}
    assert served.news == ["1"]


async def test_offer_waits_for_the_answer(served: Served, make_netns: MakeNetns) -> None:
    """An offer is True once ztunnel has the pod, and the next one costs no message."""
    ztunnel = await served.connected()
    held = make_netns()
    assert await served.agent.offer(a_pod("1"), held)
    assert await served.agent.offer(a_pod("1"), held)
    assert ztunnel.requests[1:] == [("add", "1")]
    assert served.news == []


async def test_replaced_netns_is_sent_again(served: Served, make_netns: MakeNetns) -> None:
    """L14: the same UID with another netns is offered anew; nothing of the old one is sent."""
    ztunnel = await served.connected()
    await served.agent.offer(a_pod("1"), make_netns())
    newer = make_netns()
    assert await served.agent.offer(a_pod("1"), newer)
    assert ztunnel.workloads == {"1": newer.id}


async def test_withdrawal_returns_when_told(served: Served, make_netns: MakeNetns) -> None:
    """L13: when withdraw returns, every ztunnel has dropped the pod, refused ones included."""
    first = await served.connected()
    await served.agent.offer(a_pod("1"), make_netns())
    second = await served.connected()
    second.mood = Mood.REFUSING
    with pytest.raises(RefusedError, match="cannot bind"):
        await served.agent.offer(a_pod("2"), make_netns())
    for uid in ("1", "2"):
        await served.agent.withdraw(PodUID(uid))
    assert first.requests[-1:] == [("del", "1")]
    assert second.requests[-2:] == [("del", "1"), ("del", "2")]
    assert first.workloads == second.workloads == {}


async def test_add_goes_to_the_newest_only(served: Served, make_netns: MakeNetns) -> None:
    """L11: with two ztunnels, an add goes to the newer; when it goes, the older takes over."""
    older = await served.connected()
    newer = await served.connected()
    await served.agent.offer(a_pod("1"), make_netns())
    assert (older.workloads, list(newer.workloads)) == ({}, ["1"])
    newer.close()
    await older.until(lambda: "1" in older.workloads)
    assert await served.agent.offer(a_pod("2"), make_netns())
    assert list(older.workloads) == ["1", "2"]


async def test_older_ztunnel_is_not_given_what_waited(
    served: Served, make_netns: MakeNetns
) -> None:
    """L11: a pod that waited for a stuck ztunnel goes to the newer one only."""
    older = await served.connected()
    older.mood = Mood.SILENT
    offers = [asyncio.create_task(served.agent.offer(a_pod(uid), make_netns())) for uid in "12"]
    await older.until(lambda: ("add", "1") in older.requests)
    newer = await served.connected()
    older.mood = Mood.WILLING
    older.answer(OK)
    assert await asyncio.gather(*offers) == [True, True]
    await served.agent.withdraw(PodUID("1"))
    assert sorted(newer.requests) == [
        ("add", "1"),
        ("add", "2"),
        ("del", "1"),
        ("snapshot_sent", ""),
    ]
    assert older.requests == [("snapshot_sent", ""), ("add", "1"), ("del", "1")]


async def test_disconnects_out_of_order(served: Served, make_netns: MakeNetns) -> None:
    """L11: the older one leaving last or first never hides the one that is connected."""
    older = await served.connected()
    newer = await served.connected()
    older.close()
    assert await served.agent.offer(a_pod("1"), make_netns())
    assert list(newer.workloads) == ["1"]


async def test_pod_offered_during_the_snapshot(served: Served, make_netns: MakeNetns) -> None:
    """A pod that comes in mid-snapshot is told once; one that went is not told of at all."""
    held = make_netns()
    for uid in ("1", "2", "3"):
        await served.agent.offer(a_pod(uid), held)
    ztunnel = served.connect()
    tasks: list[asyncio.Task[object]] = []

    def change(kind: str, uid: str) -> None:
        if (kind, uid) == ("add", "1"):
            tasks.append(asyncio.create_task(served.agent.offer(a_pod("4"), held)))
            tasks.append(asyncio.create_task(served.agent.withdraw(PodUID("1"))))
            tasks.append(asyncio.create_task(served.agent.withdraw(PodUID("3"))))

    ztunnel.on_request = change
    await ztunnel.up_to_date()
    await asyncio.gather(*tasks)
    adds = sorted(uid for kind, uid in ztunnel.requests if kind == "add")
    assert adds == ["1", "2", "4"]
    assert sorted(ztunnel.workloads) == ["2", "4"]
    assert ("del", "3") not in ztunnel.requests


async def test_pod_that_is_heard_of_during_the_snapshot(
    served: Served, make_netns: MakeNetns
) -> None:
    """L31: it is in this very snapshot, though nothing is known of its netns yet."""
    await served.agent.offer(a_pod("1"), make_netns())
    ztunnel = served.connect()
    ztunnel.on_request = lambda _kind, _uid: served.kept.add(PodUID("2"))
    await ztunnel.up_to_date()
    assert ztunnel.requests == [("add", "1"), ("keep", "2"), ("snapshot_sent", "")]


async def test_netns_that_is_reclaimed(served: Served, make_netns: MakeNetns) -> None:
    """Of a netns that is about to be closed nothing is sent; the pod is kept."""
    first = await served.connected()
    held = make_netns()
    await served.agent.offer(a_pod("1"), held)
    served.kept.add(PodUID("1"))
    served.agent.reclaim(PodUID("1"))
    held.close()
    again = await served.connected()
    assert again.requests == [("keep", "1"), ("snapshot_sent", "")]
    again.close()
    assert await served.agent.offer(a_pod("2"), make_netns())
    assert sorted(first.workloads) == ["1", "2"]


async def test_refused_pod_is_offered_again(served: Served, make_netns: MakeNetns) -> None:
    """An Ack with an error keeps the connection; a later offer asks again and succeeds."""
    ztunnel = await served.connected()
    ztunnel.mood = Mood.REFUSING
    held = make_netns()
    with pytest.raises(RefusedError):
        await served.agent.offer(a_pod("1"), held)
    ztunnel.mood = Mood.WILLING
    assert await served.agent.offer(a_pod("1"), held)
    assert not ztunnel.ended


async def test_accepted_before_is_accepted_after_the_refuser_left(
    served: Served, make_netns: MakeNetns
) -> None:
    """Where the newest refuses and goes, the older ztunnel's acceptance counts again."""
    await served.connected()
    held = make_netns()
    await served.agent.offer(a_pod("1"), held)
    refusing = served.connect()
    refusing.mood = Mood.REFUSING
    await refusing.up_to_date()
    waiting = asyncio.create_task(served.agent.offer(a_pod("1"), held))
    with pytest.raises(RefusedError):
        await waiting
    refusing.mood = Mood.SILENT
    waiting = asyncio.create_task(served.agent.offer(a_pod("1"), held))
    await refusing.until(lambda: refusing.requests.count(("add", "1")) == 3)
    refusing.close()
    assert await waiting


async def test_acceptance_outlives_ztunnel(served: Served, make_netns: MakeNetns) -> None:
    """A pod that was accepted stays so while ztunnel is away: nothing is reported anew."""
    ztunnel = await served.connected()
    held = make_netns()
    await served.agent.offer(a_pod("1"), held)
    ztunnel.close()
    assert await served.agent.offer(a_pod("1"), held)
    again = await served.connected()
    assert list(again.workloads) == ["1"]
    assert served.news == []


async def test_request_that_ztunnel_could_not_read(served: Served, make_netns: MakeNetns) -> None:
    """A pod whose add exceeds 1,024 bytes is given up, not sent."""
    pod = Pod(uid=PodUID("1"), name="n" * 253, namespace="x" * 63, service_account="s" * 900)
    with pytest.raises(GiveUpError, match="1024"):
        await served.agent.offer(pod, make_netns())
