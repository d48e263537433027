"""Misbehavior on request: what the agent sees of each fault."""

import asyncio
import time

import pytest

from tests.ztunnel_stub.agent import Agent, Session
from tests.ztunnel_stub.harness import Stub, StubFactory, eventually, held
from tests.ztunnel_stub.pods import Pod
from ztunnel_stub.faults import Fault, FaultKind, Faults


async def session_with(start_stub: StubFactory, agent: Agent, *faults: str) -> tuple[Stub, Session]:
    stub = await start_stub(faults=tuple(map(Fault.parse, faults)))
    return stub, await agent.session()


async def test_no_hello(start_stub: StubFactory, agent: Agent) -> None:
    """It connects and stays silent; the next connection is a proper one."""
    await start_stub(faults=(Fault.parse("no-hello:1"),))
    with await agent.accept() as session:
        assert await session.keep("a") == ""
    (await agent.session()).close()


async def test_late_answer(start_stub: StubFactory, agent: Agent) -> None:
    """The answer comes after its time, once; the next is prompt."""
    _, session = await session_with(start_stub, agent, "late-answer:2:1")
    with session:
        started = time.monotonic()
        assert await session.keep("a") == ""
        assert time.monotonic() - started >= 2
        started = time.monotonic()
        assert await session.keep("a") == ""
        assert time.monotonic() - started < 2


async def test_missing_answer(start_stub: StubFactory, agent: Agent, pod: Pod) -> None:
    """L12: what is asked is done, and the answer never comes; the next request's does."""
    stub, session = await session_with(start_stub, agent, "missing-answer:1")
    with session:
        unanswered = asyncio.create_task(session.add("a", pod.netns.fd))
        await eventually(lambda: _up(stub, "a"))
        assert not unanswered.done()
        unanswered.cancel()
        await asyncio.wait([unanswered])
        assert await session.keep("b") == ""


async def test_negative_answer(start_stub: StubFactory, agent: Agent, pod: Pod) -> None:
    """The add is refused and the pod pending, until the stub's own retry."""
    stub, session = await session_with(start_stub, agent, "negative-answer:1")
    with session:
        assert "negative-answer" in await session.add("a", pod.netns.fd)
        assert await session.snapshot_sent() == ""
        await eventually(stub.ready)
        assert await stub.states() == {"a": "Up"}


async def test_garbage(start_stub: StubFactory, agent: Agent) -> None:
    """The answer is no message."""
    _, session = await session_with(start_stub, agent, "garbage:1")
    with session:
        with pytest.raises(Exception, match="parsing"):
            await session.keep("a")
        assert await session.keep("a") == ""


async def test_close_in_mid_snapshot(start_stub: StubFactory, agent: Agent, pod: Pod) -> None:
    """The N-th message of a snapshot is answered by the end; the next snapshot is taken."""
    stub, session = await session_with(start_stub, agent, "close-in-snapshot:2:1")
    with session:
        assert await session.keep("a") == ""
        before = held(pod)
        with pytest.raises(AssertionError, match="closed"):
            await session.add("b", pod.netns.fd)
        assert held(pod) == before
    with await agent.session() as session:
        assert await session.keep("a") == ""
        assert await session.add("b", pod.netns.fd) == ""
        assert await session.snapshot_sent() == ""
        assert await stub.ready()


async def test_unasked_answer(start_stub: StubFactory, agent: Agent) -> None:
    """An answer comes before anything was asked."""
    _, session = await session_with(start_stub, agent, "unasked-answer")
    with session:
        assert await session.answer() == ""


async def test_double_answer(start_stub: StubFactory, agent: Agent) -> None:
    """One request, two answers."""
    _, session = await session_with(start_stub, agent, "double-answer:1")
    with session:
        assert await session.keep("a") == ""
        assert await session.answer() == ""
        assert await session.keep("a") == ""


async def test_oversized_answer(start_stub: StubFactory, agent: Agent) -> None:
    """The answer is a message, in a packet that is too long."""
    _, session = await session_with(start_stub, agent, "oversized-answer:1")
    with session:
        assert len(await session.ask_raw(b"\x2a\x03\x0a\x01a")) > 1024
        assert await session.keep("a") == ""


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("garbage", Fault(FaultKind.GARBAGE)),
        ("garbage:3", Fault(FaultKind.GARBAGE, count=3)),
        ("late-answer:0.5", Fault(FaultKind.LATE_ANSWER, 0.5)),
        ("late-answer:6:2", Fault(FaultKind.LATE_ANSWER, 6, 2)),
    ],
)
def test_a_fault_is_written_with_argument_and_count(text: str, fault: Fault) -> None:
    """NAME[:ARG][:COUNT]; only some have an argument."""
    assert Fault.parse(text) == fault


@pytest.mark.parametrize(
    "text",
    ["", "rubbish", "garbage:0", "garbage:x", "garbage:1:1", "late-answer", "late-answer:-1",
     "late-answer:nan", "close-in-snapshot:1:2:3"],
)  # fmt: skip
def test_a_wrong_fault_is_refused(text: str) -> None:
    """A typing error does not run as another fault, or as none."""
    with pytest.raises(ValueError, match=r".*"):
        Fault.parse(text)


def test_faults_of_one_kind_happen_one_after_the_other() -> None:
    """Repeating --fault queues; each has its own count."""
    first, second = Fault(FaultKind.LATE_ANSWER, 1, 2), Fault(FaultKind.LATE_ANSWER, 2, 1)
    faults = Faults([first, second])
    assert [faults.take(FaultKind.LATE_ANSWER) for _ in range(4)] == [first, first, second, None]


async def _up(stub: Stub, uid: str) -> bool:
    return (await stub.states()).get(uid) == "Up"
