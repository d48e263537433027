"""The life of a ZDS connection, as the agent sees it."""

import asyncio
import os
import socket
import time
from collections.abc import Awaitable
from contextlib import ExitStack

import pytest

from nodeagent.zds import zds_pb2
from tests.descriptors import open_descriptors
from tests.eventually import PATIENCE
from tests.ztunnel_stub.agent import Agent, Session, add, delete
from tests.ztunnel_stub.conftest import PodFactory
from tests.ztunnel_stub.harness import Logs, Stub, StubFactory, eventually, held
from tests.ztunnel_stub.pods import Pod
from ztunnel_stub.backoff import Backoff

KEEP = zds_pb2.WorkloadRequest(keep=zds_pb2.KeepWorkload(uid="a"))
SNAPSHOT_SENT = zds_pb2.WorkloadRequest(snapshot_sent=zds_pb2.SnapshotSent())


async def test_it_is_ready_from_the_snapshots_end_until_it_is_disconnected(
    stub: Stub, agent: Agent, pod: Pod
) -> None:
    """Ready means: connected, the whole snapshot received, nothing pending."""
    with await agent.session() as session:
        assert not await stub.ready()
        assert await session.add("a", pod.netns.fd) == ""
        assert not await stub.ready()
        assert await session.snapshot_sent() == ""
        assert await stub.ready()
        agent.close()
    await eventually(lambda: _not(stub.ready()))
    assert await stub.states() == {"a": "Up"}


async def test_the_dump_shows_what_the_agent_said(session: Session, stub: Stub, pod: Pod) -> None:
    """The admin endpoint has every workload by UID, in ztunnel's form."""
    assert await session.add("a", pod.netns.fd, "web") == ""
    assert await stub.workloads() == {
        "a": {
            "state": "Up",
            "connections": {"outbound": [], "inbound": [], "hbone": [], "dns": []},
            "info": {"name": "web", "namespace": "shop", "serviceAccount": "clerk"},
            "netns": pod.netns.id.inode,
        }
    }


async def test_a_workload_goes_when_it_is_deleted(session: Session, stub: Stub, pod: Pod) -> None:
    """A delete is answered at once and closes the listeners; an unknown UID is fine."""
    assert await session.add("a", pod.netns.fd) == ""
    assert await session.delete("a") == ""
    assert _listening(pod) == set()
    assert await session.delete("a") == ""
    assert await stub.ready()


async def test_a_namespace_is_not_passed_on_to_programs(session: Session, pod: Pod) -> None:
    """A descriptor that an inherited copy keeps open would keep a dead pod's namespace."""
    before = open_descriptors()
    assert await session.add("a", pod.netns.fd) == ""
    opened = [int(line.split()[0]) for line in open_descriptors() - before]
    assert len(opened) == 8
    assert not any(map(os.get_inheritable, opened))


async def test_nothing_is_left_of_a_workload(session: Session, pod: Pod) -> None:
    """Listeners and namespace are closed once it has drained."""
    before = open_descriptors()
    assert await session.add("a", pod.netns.fd) == ""
    assert await session.delete("a") == ""
    await eventually(lambda: open_descriptors() == before)


async def test_a_new_snapshot_drains_what_it_does_not_name(
    start_stub: StubFactory, agent: Agent, make_pod: PodFactory
) -> None:
    """L13: after a reconnect what was added or kept stays, everything else goes."""
    stub = await start_stub()
    pods = {uid: make_pod() for uid in ("added", "kept", "forgotten")}
    with await agent.session() as session:
        for uid, pod in pods.items():
            assert await session.add(uid, pod.netns.fd) == ""
        assert await session.snapshot_sent() == ""
    with await agent.session() as session:
        assert await session.add("added", pods["added"].netns.fd) == ""
        assert await session.keep("kept") == ""
        assert set(await stub.states()) == set(pods)
        assert await session.snapshot_sent() == ""
        assert await stub.states() == {"added": "Up", "kept": "Up"}
        assert _listening(pods["forgotten"]) == set()


@pytest.mark.parametrize(
    ("complete", "request_", "with_descriptor", "complaint"),
    [
        (True, KEEP, 0, "keep after"),
        (True, SNAPSHOT_SENT, 0, "second snapshot"),
        (False, delete("a"), 0, "delete before"),
        (False, add("a"), 0, "one descriptor"),
        (False, add("a"), 2, "one descriptor"),
        (False, KEEP, 1, "must not carry"),
        (False, SNAPSHOT_SENT, 1, "must not carry"),
        (False, zds_pb2.WorkloadRequest(), 1, "must not carry"),
        (False, add("a", "x" * 1024), 1, "truncated"),
        (False, add("a"), 9, "truncated"),
    ],
)
async def test_a_breach_of_the_protocol_is_answered_and_ends_the_connection(
    stub: Stub,
    agent: Agent,
    pod: Pod,
    *,
    complete: bool,
    request_: zds_pb2.WorkloadRequest,
    with_descriptor: int,
    complaint: str,
) -> None:
    """Whatever the breach: an Ack with the reason, the end, no descriptor kept, a new start."""
    with await agent.session() as session:
        if complete:
            assert await session.snapshot_sent() == ""
        before = open_descriptors()
        assert complaint in await session.ask(request_, *[pod.netns.fd] * with_descriptor)
        assert await session.ended()
        (await agent.session()).close()
    assert await stub.states() == {}
    assert {opened for opened in open_descriptors() - before if "net:" in opened} == set()


@pytest.mark.parametrize("data", [b"\xff" * 16, b"\x0a\x05\x0a\x03\xff\xff\xff"])
async def test_garbage_is_answered_and_ends_the_connection(
    agent: Agent, stub: Stub, pod: Pod, data: bytes
) -> None:
    """Bytes that are no message are a breach too, and their descriptor is closed."""
    with await agent.session() as session:
        before = open_descriptors()
        session.send(data, [pod.netns.fd])
        assert "not a WorkloadRequest" in await session.answer()
        assert await session.ended()
    assert {opened for opened in open_descriptors() - before if "net:" in opened} == set()
    assert not await stub.ready()


async def test_a_descriptor_of_something_else_is_refused(agent: Agent, stub: Stub) -> None:
    """L10: what is handed over must be a network namespace."""
    with await agent.session() as session, open("/proc/self/ns/mnt", "rb") as other:
        assert "no network namespace" in await session.add("a", other.fileno())
        assert await session.ended()
    assert await stub.states() == {}


async def test_the_same_namespace_again_changes_nothing(
    session: Session, stub: Stub, pod: Pod
) -> None:
    """The listeners that stand are kept, and the second descriptor is closed."""
    assert await session.add("a", pod.netns.fd) == ""
    before = open_descriptors()
    assert await session.add("a", pod.netns.fd) == ""
    assert open_descriptors() == before
    assert await stub.states() == {"a": "Up"}


async def test_another_namespace_replaces_the_old_one(
    session: Session, stub: Stub, make_pod: PodFactory
) -> None:
    """L14: a sandbox that was made anew has the same UID and a new namespace."""
    old, new = make_pod(), make_pod()
    assert await session.add("a", old.netns.fd) == ""
    assert await session.add("a", new.netns.fd) == ""
    assert _listening(old) == set()
    assert _listening(new) == {15001, 15006, 15008, 15053}
    assert (await stub.workloads())["a"]["netns"] == new.netns.id.inode


async def test_a_listener_that_does_not_bind_is_tried_again(
    session: Session, stub: Stub, pod: Pod, logs: Logs
) -> None:
    """The add is answered with the reason, the pod is pending, and comes up by itself."""
    with pod.call(_occupy, 15006):
        assert "15006" in await session.add("a", pod.netns.fd)
        assert await stub.states() == {"a": "Pending"}
        assert not await stub.ready()
        assert _listening(pod) == {15006}
        await eventually(lambda: any(line["event"] == "still pending" for line in logs.lines))
    await eventually(stub.ready)
    assert await stub.states() == {"a": "Up"}


async def test_what_is_pending_is_tried_again_while_the_agent_talks(
    start_stub: StubFactory, agent: Agent, make_pod: PodFactory
) -> None:
    """A busy agent does not put off the retry for ever."""
    stub = await start_stub(retry_interval=0.1)
    pod = make_pod()
    with await agent.session() as session:
        assert await session.snapshot_sent() == ""
        with pod.call(_occupy, 15006):
            assert await session.add("a", pod.netns.fd) != ""
        async with asyncio.timeout(PATIENCE):
            while await stub.states() != {"a": "Up"}:
                assert await session.delete("unknown") == ""


async def test_a_retry_is_a_whole_interval_after_the_failure(
    start_stub: StubFactory, agent: Agent, make_pod: PodFactory, logs: Logs
) -> None:
    """What was pending before, and was deleted, does not bring the next retry forward."""
    stub = await start_stub(retry_interval=1)
    first, second = make_pod(), make_pod()
    with await agent.session() as session:
        assert await session.snapshot_sent() == ""
        with first.call(_occupy, 15006):
            assert await session.add("a", first.netns.fd) != ""
        assert await session.delete("a") == ""
        await asyncio.sleep(1.5)  # in the middle between two intervals
        failed = time.monotonic()
        with second.call(_occupy, 15006):
            assert await session.add("b", second.netns.fd) != ""
        await eventually(stub.ready)
        assert time.monotonic() - failed >= 1
    assert "still pending" not in [line["event"] for line in logs.lines]


@pytest.mark.parametrize("way", ["deleted", "added again", "disconnected", "stopped"])
async def test_what_is_pending_holds_its_namespace_no_longer_than_needed(
    start_stub: StubFactory, agent: Agent, make_pod: PodFactory, way: str
) -> None:
    """A pending workload's descriptor is closed on every way out."""
    stub = await start_stub(retry_interval=60)
    pod = make_pod()
    with await agent.session() as session, pod.call(_occupy, 15001):
        assert await session.snapshot_sent() == ""
        before = held(pod)
        assert await session.add("a", pod.netns.fd) != ""
        assert held(pod) == before + 1
        match way:
            case "deleted":
                assert await session.delete("a") == ""
            case "added again":
                assert await session.add("a", pod.netns.fd) != ""
                before += 1
            case "disconnected":
                session.close()
                (await agent.session()).close()
            case "stopped":
                await stub.stop()
        assert held(pod) == before


async def test_two_stubs_listen_side_by_side(
    start_stub: StubFactory, agent: Agent, pod: Pod
) -> None:
    """A rolling update: the new one binds the same ports while the old one still has them."""
    with ExitStack() as sessions:
        for _ in range(2):
            await start_stub()
            session = sessions.enter_context(await agent.session())
            assert await session.add("a", pod.netns.fd) == ""
            assert await session.snapshot_sent() == ""
    listening = pod.shell("ss -Hltn").splitlines()
    assert sum(":15006" in line for line in listening) == 2


async def test_every_listener_is_marked(session: Session, pod: Pod) -> None:
    """The rules tell ztunnel's packets from the app's by the mark, on every socket."""
    assert await session.add("a", pod.netns.fd) == ""
    sockets = pod.shell("ss -Hltune").splitlines()
    assert len(sockets) == 7
    assert all("fwmark:0x539" in line for line in sockets)


async def test_a_namespace_without_ipv6_is_served_on_ipv4(
    session: Session, make_pod: PodFactory
) -> None:
    """Where `lo` has no IPv6 address the DNS listeners are the IPv4 ones alone."""
    pod = make_pod("sysctl -qw net.ipv6.conf.all.disable_ipv6=1")
    assert await session.add("a", pod.netns.fd) == ""
    assert _listening(pod) == {15001, 15006, 15008, 15053}


async def test_it_comes_back_soon_to_an_agent_that_talks(agent: Agent, stub: Stub) -> None:
    """L12: every new connection has its hello; one that says nothing is called ever less often."""
    silent = [await _pause(agent, talk=False) for _ in range(8)][-1]
    await _pause(agent, talk=True)
    talked = await _pause(agent, talk=False)
    assert silent >= 0.64
    assert talked < 0.64
    assert not await stub.ready()


def test_the_back_off_is_ztunnels() -> None:
    """10 ms, doubled up to 15 s, and from the start again after a success."""
    backoff = Backoff()
    assert [backoff.next() for _ in range(3)] == [0.01, 0.02, 0.04]
    assert [backoff.next() for _ in range(20)][-1] == 15
    backoff.reset()
    assert backoff.next() == 0.01


async def test_a_missing_directory_is_named_once(start_stub: StubFactory, logs: Logs) -> None:
    """Where the socket's directory is missing, one line says so and what to do."""
    await start_stub(inpod_uds="/nowhere/zds.sock")
    await eventually(lambda: len(logs.lines) >= 2)
    await asyncio.sleep(0.1)  # several more tries
    (line,) = (line for line in logs.lines if line["log_level"] == "warning")
    assert "no directory /nowhere; start the agent" in line["trouble"]


def _occupy(port: int) -> socket.socket:
    """Listen without sharing the port."""
    return socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)


def _listening(pod: Pod) -> set[int]:
    return {int(line.split()[3].rpartition(":")[2]) for line in pod.shell("ss -Hltn").splitlines()}


async def _pause(agent: Agent, *, talk: bool) -> float:
    """Seconds until the stub's next connection, which ends at once."""
    started = time.monotonic()
    with await agent.session() as session:
        pause = time.monotonic() - started
        if talk:
            assert await session.keep("a") == ""
    return pause


async def _not(condition: Awaitable[bool]) -> bool:
    return not await condition
