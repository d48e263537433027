"""What ztunnels, and others at their socket, may do wrong. None of it holds up anybody else."""

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from nodeagent.mesh.pod import PodUID
from nodeagent.netns.netns import Netns
from nodeagent.zds.connection import Peer
from nodeagent.zds.server import MAX_SILENT
from tests.descriptors import open_descriptors
from tests.eventually import eventually
from tests.zds.conftest import ANSWER_TIMEOUT, Served, a_pod, serving
from tests.zds.model import HELLO, OK, ModelZtunnel, Mood

pytestmark = pytest.mark.virtual_time

MakeNetns = Callable[[], Netns]


async def ended(ztunnel: ModelZtunnel) -> None:
    await ztunnel.until(lambda: ztunnel.ended)


async def test_missed_deadline_ends_the_connection(served: Served, make_netns: MakeNetns) -> None:
    """L12: a late answer would be taken for the next one's; a fresh snapshot repairs it."""
    ztunnel = await served.connected()
    ztunnel.mood = Mood.SILENT
    assert not await served.agent.offer(a_pod("1"), make_netns())
    await ended(ztunnel)
    again = await served.connected()
    assert list(again.workloads) == ["1"]


async def test_delete_while_ztunnel_is_stuck(served: Served, make_netns: MakeNetns) -> None:
    """L12: a pod that is deleted while ztunnel hangs or reconnects holds nobody up."""
    stuck = await served.connected()
    await served.agent.offer(a_pod("1"), make_netns())
    stuck.mood = Mood.SILENT
    async with asyncio.timeout(ANSWER_TIMEOUT * 4):
        await served.agent.withdraw(PodUID("1"))
    assert (await served.connected()).workloads == {}


async def test_stuck_ztunnel_does_not_delay_another(served: Served, make_netns: MakeNetns) -> None:
    """While one ztunnel is silent, a newer one is given its snapshot and new pods."""
    stuck = await served.connected()
    stuck.mood = Mood.SILENT
    first = asyncio.create_task(served.agent.offer(a_pod("1"), make_netns()))
    await stuck.until(lambda: ("add", "1") in stuck.requests)
    newer = await served.connected()
    assert await first
    assert await served.agent.offer(a_pod("2"), make_netns())
    assert not stuck.ended
    assert list(newer.workloads) == ["1", "2"]


async def test_no_hello(served: Served) -> None:
    """Who connects and says nothing is closed after the deadline, and was told nothing."""
    silent = served.connect(hello=None)
    await ended(silent)
    assert silent.requests == []


@pytest.mark.parametrize(
    "hello",
    [
        b"\xff" * 20,
        b"\x10\x01",
        b"\x08\x02",
        HELLO + bytes(1024),
    ],
    ids=["garbage", "no version", "version 2", "too long"],
)
async def test_wrong_hello(served: Served, make_netns: MakeNetns, hello: bytes) -> None:
    """A first packet that is no hello of version 1 ends the connection before anything is sent."""
    await served.agent.offer(a_pod("1"), make_netns())
    stranger = served.connect(hello=hello)
    await ended(stranger)
    assert stranger.requests == []


@pytest.mark.parametrize(
    "answer",
    [b"\xff" * 8, b"\x12\x00", OK + bytes(1024)],
    ids=["garbage", "no ack", "too long"],
)
async def test_wrong_answer(served: Served, make_netns: MakeNetns, answer: bytes) -> None:
    """An answer that is none ends the connection; the pod waits for the next ztunnel."""
    ztunnel = await served.connected()
    ztunnel.mood = Mood.SILENT
    ztunnel.on_request = lambda _kind, _uid: ztunnel.answer(answer)
    assert not await served.agent.offer(a_pod("1"), make_netns())
    await ended(ztunnel)
    assert list((await served.connected()).workloads) == ["1"]


async def test_unasked_answer(served: Served) -> None:
    """ztunnel never speaks unasked: an answer to nothing ends the connection."""
    ztunnel = await served.connected()
    ztunnel.answer(OK)
    await ended(ztunnel)


async def test_two_answers_for_one(served: Served, make_netns: MakeNetns) -> None:
    """A second answer is not taken for the next request's."""
    ztunnel = await served.connected()
    ztunnel.on_request = lambda _kind, _uid: ztunnel.answer(OK)
    await served.agent.offer(a_pod("1"), make_netns())
    await ended(ztunnel)


async def test_close_in_mid_snapshot(served: Served, make_netns: MakeNetns) -> None:
    """A ztunnel that goes in mid-snapshot costs nothing; the next one gets all of it."""
    held = make_netns()
    for uid in "123":
        await served.agent.offer(a_pod(uid), held)
    leaving = served.connect()
    leaving.on_request = lambda _kind, uid: leaving.close() if uid == "2" else None
    await ended(leaving)
    assert sorted((await served.connected()).workloads) == ["1", "2", "3"]


async def test_flood_of_silent_connections(served: Served, make_netns: MakeNetns) -> None:
    """However many connect and say nothing, a ztunnel is served, and no descriptor stays."""
    await served.agent.offer(a_pod("1"), make_netns())
    before = open_descriptors()
    flood = [served.connect(hello=None) for _ in range(3 * MAX_SILENT)]  # the backlog is 128
    ztunnel = await served.connected()
    assert list(ztunnel.workloads) == ["1"]
    assert ztunnel.mood is Mood.WILLING
    for silent in flood:
        await ended(silent)
        assert silent.requests == []
    ztunnel.close()
    await eventually(lambda: open_descriptors() == before)


async def test_descriptors_that_a_peer_attaches(served: Served) -> None:
    """Descriptors that come with a packet are dropped by the kernel, never opened here."""
    before = len(open_descriptors())
    ztunnel = served.connect(hello=None)
    with open("/proc/self/comm") as attached:
        socket.send_fds(ztunnel.socket, [HELLO], [attached.fileno()] * 8)
    await ztunnel.up_to_date()
    assert len(open_descriptors()) == before + 2, "one for each end of the connection"


async def test_peer_of_another_user(tmp_path: Path, make_netns: MakeNetns) -> None:
    """A peer whose user id is not allowed is closed before a byte is sent, hello or not."""
    async with serving(tmp_path, peer_uids=frozenset({12345})) as served:
        await served.agent.offer(a_pod("1"), make_netns())
        stranger = served.connect()
        await ended(stranger)
        assert stranger.requests == []


async def test_peer_of_another_pid_namespace(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ztunnel whose process the kernel cannot number is told apart by its connection."""
    monkeypatch.setattr(Peer, "of", lambda _: Peer(pid=0, uid=0, gid=0))
    with capture_logs() as logs:
        await served.connected()
        await served.connected()
    names = [line["ztunnel"] for line in logs if line["event"] == "ztunnel connected"]
    assert names == ["connection 1", "connection 2"]
