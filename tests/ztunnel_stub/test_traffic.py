"""Traffic through a redirected pod, packet by packet: 15001, 15006, 15008."""

import asyncio
import socket

import pytest

from tests.ztunnel_stub.agent import Agent, Session
from tests.ztunnel_stub.conftest import PodFactory
from tests.ztunnel_stub.harness import Logs, Stub, StubFactory, eventually
from tests.ztunnel_stub.peers import (
    PORT,
    V4,
    V6,
    Cable,
    Family,
    accept,
    address,
    connect,
    exchange,
    lay_cable,
    listen,
    name,
    receive,
    send,
    shown,
)
from tests.ztunnel_stub.pods import Pod

FAMILIES = pytest.mark.parametrize("family", [V4, V6])


@pytest.fixture
async def cable(session: Session, make_pod: PodFactory) -> Cable:
    """The pod at its end is served."""
    cable = lay_cable(make_pod)
    assert await session.add("a", cable.pod.netns.fd, "web") == ""
    return cable


@FAMILIES
async def test_outbound_reaches_its_original_destination(
    cable: Cable, logs: Logs, family: Family
) -> None:
    """15001 dials what the app dialled, from inside the pod, and accounts for it."""
    theirs, ours = address(2, family), address(1, family)
    with (
        listen(cable.neighbor, family) as server,
        await connect(cable.pod, theirs) as client,
        await accept(server) as accepted,
    ):
        source = name(client)
        assert accepted.getpeername()[0] == ours
        assert shown(*accepted.getpeername()[:2]) != source
        await exchange(client, accepted)
    line = await logs.connection()
    assert (line["pod"], line["uid"]) == ("shop/web", "a")
    assert line["direction"] == "outbound"
    assert line["source"] == source
    assert line["destination"] == shown(theirs, PORT)
    assert (line["bytes_sent"], line["bytes_received"]) == (4, 6)
    assert 0 < line["duration"] < 5
    assert "error" not in line


@FAMILIES
async def test_inbound_reaches_the_app_from_the_clients_own_address(
    cable: Cable, logs: Logs, family: Family
) -> None:
    """15006 dials the app as if it were the client; the rules bring the replies back to it."""
    theirs, ours = address(2, family), address(1, family)
    with (
        listen(cable.pod, family) as server,
        await connect(cable.neighbor, ours) as client,
        await accept(server) as accepted,
    ):
        source = name(client)
        assert accepted.getpeername()[0] == theirs
        assert name(accepted) == shown(ours, PORT)
        await exchange(client, accepted)
    line = await logs.connection()
    assert line["direction"] == "inbound"
    assert line["source"] == source
    assert line["destination"] == shown(ours, PORT)
    assert (line["bytes_sent"], line["bytes_received"]) == (4, 6)
    assert "error" not in line


@FAMILIES
async def test_an_open_connection_is_in_the_dump(cable: Cable, stub: Stub, family: Family) -> None:
    """The admin endpoint shows what is open now, and forgets what has ended."""
    ours = address(1, family)
    with (
        listen(cable.pod, family) as server,
        await connect(cable.neighbor, ours) as client,
        await accept(server),
    ):
        assert await _inbound(stub) == [{"src": name(client), "originalDst": shown(ours, PORT)}]

    async def gone() -> bool:
        return await _inbound(stub) == []

    await eventually(gone)


@FAMILIES
@pytest.mark.parametrize("first", ["client", "server"])
async def test_each_side_can_end_before_the_other(cable: Cable, family: Family, first: str) -> None:
    """A half-close is passed on, and the other direction goes on."""
    with (
        listen(cable.neighbor, family) as server,
        await connect(cable.pod, address(2, family)) as client,
        await accept(server) as accepted,
    ):
        ends, goes_on = (client, accepted) if first == "client" else (accepted, client)
        await send(ends, b"the end")
        ends.shutdown(socket.SHUT_WR)
        assert await receive(goes_on) == b"the end"
        assert await receive(goes_on) == b""
        await send(goes_on, b"not yet")
        assert await receive(ends) == b"not yet"


async def test_a_slow_reader_holds_up_its_sender(cable: Cable) -> None:
    """The stub does not read what it cannot pass on; later all of it arrives."""
    data = b"x" * (32 << 20)
    with (
        listen(cable.neighbor, V4) as server,
        await connect(cable.pod, address(2, V4)) as client,
        await accept(server) as accepted,
    ):
        sending = asyncio.create_task(send(client, data))
        unread: list[int] = [0, 0]

        def stalled() -> bool:
            unread.append(_unread(cable.pod, name(client)))
            return sending.done() or unread[-1] == unread[-2] > 0

        await eventually(stalled)
        assert not sending.done()
        received = 0
        while received < len(data):
            received += len(await receive(accepted, 1 << 20))
        await sending


@pytest.mark.parametrize("breaks", ["client", "server"])
async def test_a_reset_is_passed_on(cable: Cable, logs: Logs, breaks: str) -> None:
    """What broke on one side is not presented as complete on the other."""
    with (
        listen(cable.neighbor, V4) as server,
        await connect(cable.pod, address(2, V4)) as client,
        await accept(server) as accepted,
    ):
        await exchange(client, accepted)
        broken, other = (client, accepted) if breaks == "client" else (accepted, client)
        broken.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        broken.close()
        with pytest.raises(ConnectionResetError):
            await receive(other)
    assert (await logs.connection())["error"] == "Connection reset by peer"


async def test_nobody_listening_is_a_reset_and_a_log_line(cable: Cable, logs: Logs) -> None:
    """Where the destination refuses, the client sees a reset and the log says why."""
    with (
        await connect(cable.neighbor, address(1, V4)) as client,
        pytest.raises(ConnectionResetError),
    ):
        await receive(client)
    assert (await logs.connection())["error"] == "Connection refused"


@FAMILIES
@pytest.mark.parametrize("dialler", ["pod", "neighbor"])
async def test_a_loop_is_refused(cable: Cable, logs: Logs, family: Family, dialler: str) -> None:
    """Dialling 15001 by hand, from inside or outside, ends instead of going round for ever."""
    origin = cable.pod if dialler == "pod" else cable.neighbor
    with (
        await connect(origin, address(1, family), 15001) as client,
        pytest.raises(ConnectionResetError),
    ):
        await receive(client)
    assert "loop" in (await logs.connection())["error"]


async def test_hbone_is_refused_with_a_clear_line(cable: Cable, logs: Logs) -> None:
    """15008 accepts, says in the log that it does not speak HBONE, and closes."""
    with (
        await connect(cable.neighbor, address(1, V4), 15008) as client,
        pytest.raises(ConnectionResetError),
    ):
        await receive(client)
    line = await logs.connection()
    assert line["direction"] == "hbone"
    assert "does not speak HBONE" in line["error"]


@pytest.mark.parametrize("end", ["delete", "stop"])
async def test_a_workload_that_ends_drains(
    start_stub: StubFactory, agent: Agent, make_pod: PodFactory, end: str
) -> None:
    """Listeners close at once; an open connection goes on, and is waited for."""
    stub = await start_stub(drain_timeout=60)
    cable = lay_cable(make_pod)
    with await agent.session() as session, listen(cable.pod, V4) as server:
        assert await session.add("a", cable.pod.netns.fd) == ""
        assert await session.snapshot_sent() == ""
        with (
            await connect(cable.neighbor, address(1, V4)) as client,
            await accept(server) as accepted,
        ):
            if end == "delete":
                assert await session.delete("a") == ""
                assert await stub.states() == {}
            else:
                stub.request_stop()
                assert await session.ended()
            with pytest.raises(ConnectionRefusedError):
                (await connect(cable.neighbor, address(1, V4))).close()
            await exchange(client, accepted)
            assert not stub.task.done()
        await stub.stop()


async def test_a_connection_that_outlasts_the_drain_is_cut(
    cable: Cable, session: Session, logs: Logs
) -> None:
    """A drain's time has an end: both sides see a reset, and the log says why."""
    with (
        listen(cable.pod, V4) as server,
        await connect(cable.neighbor, address(1, V4)) as client,
        await accept(server) as accepted,
    ):
        assert await session.delete("a") == ""
        for end in (client, accepted):
            with pytest.raises(ConnectionResetError):
                await receive(end)
    assert "drain" in (await logs.connection())["error"]


async def _inbound(stub: Stub) -> list[dict[str, str]]:
    connections: list[dict[str, str]] = (await stub.workloads())["a"]["connections"]["inbound"]
    return connections


def _unread(pod: Pod, source: str) -> int:
    """Bytes from `source` that lie in the kernel until the stub takes them."""
    (line,) = pod.shell(f"ss -Htn src :15001 dst {source}").splitlines()
    return int(line.split()[1])
