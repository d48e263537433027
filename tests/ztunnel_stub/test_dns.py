"""DNS through a redirected pod: 15053, and the messages that the stub makes itself."""

import asyncio
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.eventually import PATIENCE
from tests.ztunnel_stub.agent import Agent
from tests.ztunnel_stub.conftest import PodFactory
from tests.ztunnel_stub.harness import Logs, StubFactory, eventually
from tests.ztunnel_stub.peers import (
    V4,
    V6,
    Cable,
    Family,
    accept,
    address,
    connect,
    lay_cable,
    name,
    open_socket,
    receive,
    send,
    shown,
)
from ztunnel_stub import dns
from ztunnel_stub.address import Endpoint

FAMILIES = pytest.mark.parametrize("family", [V4, V6])
QUESTION = b"\x03web\x04shop\x00\x00\x01\x00\x01"
QUERY = struct.pack("!6H", 0x1234, 0x0100, 1, 0, 0, 0) + QUESTION
SERVFAIL = struct.pack("!6H", 0x1234, 0x8182, 1, 0, 0, 0) + QUESTION
ANSWER = struct.pack("!6H", 0x1234, 0x8180, 1, 0, 0, 0) + QUESTION


@FAMILIES
async def test_a_udp_query_goes_to_the_resolver_and_its_answer_back(
    start_stub: StubFactory, agent: Agent, make_pod: PodFactory, logs: Logs, family: Family
) -> None:
    """The app's client sees the answer come from the server that it asked."""
    cable = lay_cable(make_pod)
    await start_stub(dns_resolver=Endpoint(address(2, family), 53))
    with (
        await agent.session() as session,
        open_socket(cable.neighbor, family, socket.SOCK_DGRAM) as resolver,
        open_socket(cable.pod, family, socket.SOCK_DGRAM) as client,
    ):
        assert await session.add("a", cable.pod.netns.fd) == ""
        resolver.bind(("", 53))
        client.connect((address(9, family), 53))
        await send(client, QUERY)
        query, asker = await _receive_from(resolver)
        assert query == QUERY
        assert asker[0] == address(1, family)
        assert shown(*asker[:2]) != name(client)
        resolver.sendto(b"\\0\\0 another query's answer", asker)
        resolver.sendto(ANSWER, asker)
        assert await receive(client) == ANSWER
    line = await logs.connection()
    assert line["direction"] == "dns"
    assert line["destination"] == shown(address(2, family), 53)
    assert (line["bytes_sent"], line["bytes_received"]) == (len(QUERY), len(ANSWER))


@FAMILIES
async def test_a_tcp_query_goes_to_the_resolver_and_its_answer_back(
    start_stub: StubFactory, agent: Agent, make_pod: PodFactory, logs: Logs, family: Family
) -> None:
    """TCP is passed on as it is; the log has the server that the app dialled."""
    cable = lay_cable(make_pod)
    await start_stub(dns_resolver=Endpoint(address(2, family), 53))
    with (
        await agent.session() as session,
        open_socket(cable.neighbor, family) as resolver,
    ):
        assert await session.add("a", cable.pod.netns.fd) == ""
        resolver.bind(("", 53))
        resolver.listen()
        with (
            await connect(cable.pod, address(9, family), 53) as client,
            await accept(resolver) as accepted,
        ):
            await send(client, dns.framed(QUERY))
            assert await receive(accepted) == dns.framed(QUERY)
            await send(accepted, dns.framed(ANSWER))
            assert await receive(client) == dns.framed(ANSWER)
    assert (await logs.connection())["destination"] == shown(address(9, family), 53)


async def test_a_resolver_that_is_not_there_is_servfail_and_a_log_line(
    start_stub: StubFactory, agent: Agent, make_pod: PodFactory, logs: Logs
) -> None:
    """The app gets its answer at once, and the log says why it is that one."""
    cable = lay_cable(make_pod)
    await start_stub(dns_resolver=Endpoint(address(2, V4), 53))
    with (
        await agent.session() as session,
        open_socket(cable.pod, V4, socket.SOCK_DGRAM) as client,
    ):
        assert await session.add("a", cable.pod.netns.fd) == ""
        client.connect((address(9, V4), 53))
        await send(client, QUERY)
        assert await receive(client) == SERVFAIL
    assert (await logs.connection())["error"] == "Connection refused"


@pytest.fixture
async def cable(start_stub: StubFactory, agent: Agent, make_pod: PodFactory) -> Cable:
    """Served without a resolver."""
    cable = lay_cable(make_pod)
    await start_stub()
    with await agent.session() as session:
        assert await session.add("a", cable.pod.netns.fd) == ""
    return cable


@FAMILIES
async def test_without_a_resolver_the_answer_over_udp_is_servfail(
    cable: Cable, family: Family
) -> None:
    """The app need not wait for an answer that nobody can give."""
    with open_socket(cable.pod, family, socket.SOCK_DGRAM) as client:
        client.connect((address(2, family), 53))
        await send(client, QUERY)
        assert await receive(client) == SERVFAIL


@FAMILIES
async def test_without_a_resolver_the_answer_over_tcp_is_servfail(
    cable: Cable, family: Family
) -> None:
    """Every query on the connection is answered, however it was cut into segments."""
    with await connect(cable.pod, address(2, family), 53) as client:
        framed = dns.framed(QUERY)
        await send(client, framed + framed[:5])
        assert await receive(client) == dns.framed(SERVFAIL)
        await send(client, framed[5:])
        assert await receive(client) == dns.framed(SERVFAIL)


async def test_what_is_no_query_gets_no_answer(cable: Cable, logs: Logs) -> None:
    """An answer to an answer could go back and forth for ever; too short a packet is none."""
    with open_socket(cable.pod, V4, socket.SOCK_DGRAM) as client:
        client.connect((address(2, V4), 53))
        await send(client, ANSWER)
        await send(client, b"short")
        await eventually(lambda: len(logs.connections()) == 2)
        with pytest.raises(BlockingIOError):
            client.recv(1)
    assert all(line["error"] == "not a DNS query" for line in logs.connections())


def test_servfail_repeats_what_was_asked() -> None:
    """Identifier, opcode, "recursion desired" and the question are the query's own."""
    assert dns.servfail(QUERY) == SERVFAIL


@pytest.mark.parametrize("size", [12, 15, 23, 25])
def test_servfail_leaves_out_a_question_that_is_cut(size: int) -> None:
    """A header that promises more than follows would be malformed itself."""
    assert dns.servfail(QUERY[:size]) == struct.pack("!6H", 0x1234, 0x8182, 0, 0, 0, 0)


@given(st.binary(min_size=12))
def test_any_packet_has_a_servfail(packet: bytes) -> None:
    """Nothing that an app sends breaks the answer, and the answer is never a query."""
    answer = dns.servfail(packet)
    assert answer[:2] == packet[:2]
    assert not dns.is_query(answer)
    assert len(answer) <= len(packet)


async def _receive_from(sock: socket.socket) -> tuple[bytes, tuple[str, int]]:
    async with asyncio.timeout(PATIENCE):
        received: tuple[bytes, tuple[str, int]] = await asyncio.get_running_loop().sock_recvfrom(
            sock, 1 << 16
        )
        return received
