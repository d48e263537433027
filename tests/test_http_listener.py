"""What strangers can cost the agent over HTTP (L33): bounded in number, time and size."""

import asyncio
import contextlib
import logging
import select
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.http_listener import Bounds, application, serve_http
from nodeagent.linux.unix_sockets import listening
from tests.descriptors import open_descriptors
from tests.eventually import eventually
from tests.virtual_time import run_virtually

pytestmark = pytest.mark.virtual_time

GET = b"GET / HTTP/1.1\r\nHost: agent\r\n\r\n"
FEW = Bounds(connections=24, seconds=60, body=1000)
BRIEF = Bounds(connections=24, seconds=0.05)
BIG = 50_000_000
"""Bytes; more than the two sockets' buffers hold."""


class Served:
    """A small application behind a socket, and clients that speak bytes."""

    def __init__(self, directory: Path) -> None:
        self.path = str(directory / "agent.sock")
        self.asked = 0
        self.cancelled = 0
        self.release = asyncio.Event()
        self._writers: list[asyncio.StreamWriter] = []

    async def connect(self, sent: bytes = b"") -> asyncio.StreamReader:
        reader, writer = await asyncio.open_unix_connection(self.path)
        self._writers.append(writer)
        writer.write(sent)
        return reader

    async def answer(self, sent: bytes = GET) -> bytes:
        """Everything that comes until the connection ends."""
        return await (await self.connect(sent)).read()

    @contextlib.asynccontextmanager
    async def serving(self, bounds: Bounds) -> AsyncIterator[None]:
        app = application(bounds)
        app.router.add_get("/", self._hello)
        app.router.add_get("/held", self._held)
        app.router.add_get("/big", self._big)
        app.router.add_post("/", self._echo)
        app.router.add_get("/fault", self._fault)
        with listening(self.path, socket.SOCK_STREAM, setting="HERE") as listener:
            async with serve_http([listener], app, bounds, name="test", stop_timeout=0.1):
                yield
        for writer in self._writers:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _hello(self, _: web.Request) -> web.Response:
        return web.Response(text="hello")

    async def _held(self, _: web.Request) -> web.Response:
        self.asked += 1
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return web.Response(text="held")

    async def _fault(self, _: web.Request) -> web.Response:
        raise ArithmeticError("of ours")

    async def _big(self, _: web.Request) -> web.Response:
        return web.Response(body=bytes(BIG))

    async def _echo(self, request: web.Request) -> web.Response:
        return web.Response(body=await request.read())


@pytest.fixture
def served(tmp_path: Path) -> Served:
    return Served(tmp_path)


async def ended(reader: asyncio.StreamReader) -> None:
    with contextlib.suppress(ConnectionResetError):
        await reader.read()


async def test_old_idle_connections_make_room(served: Served) -> None:
    """However many stay idle or send their request in drops, whoever asks is answered."""
    async with served.serving(FEW):
        idle = [await served.connect(GET[: number % 20]) for number in range(100)]
        for _ in range(10):
            assert b"200 OK" in await served.answer()
        await asyncio.gather(*map(ended, idle[:60]))
        assert not idle[-1].at_eof(), "the newest had no reason to go"


async def test_who_is_being_answered_does_not_make_room(served: Served) -> None:
    """A request that is worked on outlasts a flood of connections, and the deadline."""
    async with served.serving(Bounds(connections=24, seconds=1)):
        held = asyncio.create_task(served.answer(GET.replace(b"/ ", b"/held ")))
        await eventually(lambda: served.asked == 1)
        for _ in range(100):
            await served.connect()
        await asyncio.sleep(1.1)
        served.release.set()
        assert b"held" in await held


async def test_none_more_where_all_are_being_answered(served: Served) -> None:
    """With nobody who could make room, a new connection is refused, and told so at once."""
    async with served.serving(FEW):
        held = [
            asyncio.create_task(served.answer(GET.replace(b"/ ", b"/held ")))
            for _ in range(FEW.connections)
        ]
        await eventually(lambda: served.asked == FEW.connections)
        await ended(await served.connect())
        served.release.set()
        assert all(b"held" in answer for answer in await asyncio.gather(*held))


@pytest.mark.parametrize("sent", [b"", b"G", GET[:-2]])
async def test_request_that_does_not_come(served: Served, sent: bytes) -> None:
    """A client that sends nothing, or not all, is cut off when its time is over."""
    async with served.serving(BRIEF):
        await ended(await served.connect(sent))


async def test_answer_that_is_not_taken(served: Served) -> None:
    """A client that does not read is cut off with its answer."""
    async with served.serving(BRIEF):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(served.path)
            client.sendall(GET.replace(b"/ ", b"/big "))
            # Nothing is read, and still the connection ends: POLLHUP comes at its end only.
            end = select.poll()
            end.register(client, select.POLLHUP)
            await eventually(lambda: bool(end.poll(0)))


async def test_client_that_goes_away(served: Served) -> None:
    """A request whose client has gone is not worked on any longer."""
    async with served.serving(FEW):
        _, writer = await asyncio.open_unix_connection(served.path)
        writer.write(GET.replace(b"/ ", b"/held "))
        await eventually(lambda: served.asked == 1)
        writer.close()
        await eventually(lambda: served.cancelled == 1)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET /" + b"x" * 3000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", b"400"),
        (GET[:-2] + b"A: " + b"x" * 3000 + b"\r\n\r\n", b"400"),
        (GET[:-2] + b"A: x\r\n" * 100 + b"\r\n", b"400"),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1001\r\n\r\n" + b"x" * 1001, b"413"),
    ],
    ids=["line", "field", "fields", "body"],
)
async def test_what_is_too_large(served: Served, sent: bytes, status: bytes) -> None:
    """Line, header and body are refused beyond their bounds, and the connection ends."""
    async with served.serving(FEW):
        assert (await served.answer(sent)).split()[1] == status


async def test_one_request_for_each_connection(served: Served) -> None:
    """A client that asks again on the same connection finds it closed."""
    async with served.serving(FEW):
        assert (await served.answer(GET + GET)).count(b"hello") == 1


async def test_body_that_nobody_reads(served: Served) -> None:
    """Who announces a body for a request without one is answered, and not waited for."""
    sent = GET[:-2] + b"Content-Length: 1000000\r\n\r\n"
    async with served.serving(FEW):
        assert b"hello" in await served.answer(sent)


async def test_the_flood_is_told_once(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    """The log does not grow with the number of connections."""
    async with served.serving(FEW):
        for _ in range(200):
            await served.connect()
        assert b"200 OK" in await served.answer()
    out, err = capsys.readouterr()
    assert (out + err).count("too many connections") == 1


async def test_a_failure_is_told_once(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    """Nor with the number of requests that meet a fault of ours; each has its answer."""
    async with served.serving(FEW):
        for _ in range(5):
            assert b"500 Internal" in await served.answer(GET.replace(b"/ ", b"/fault "))
    assert caplog.text.count("ArithmeticError: of ours") == 1


async def test_nothing_stays_open(served: Served) -> None:
    """The end closes every connection, whatever it was at."""
    before = open_descriptors()
    async with served.serving(FEW):
        for sent in (b"", b"G", GET, GET.replace(b"/ ", b"/held "), GET.replace(b"/ ", b"/big ")):
            await served.connect(sent)
        await eventually(lambda: served.asked == 1)
    await eventually(lambda: open_descriptors() == before)


PIECES = st.sampled_from(
    [
        *(b"GET / HTTP/1.1\r\n", b"POST / HTTP/1.1\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        *(b"Host: a\r\n", b"Content-Length: ", b"5\r\n", b"-1\r\n", b"ffffffffffffffff\r\n"),
        *(b"Transfer-Encoding: chunked\r\n", b"Upgrade: websocket\r\nConnection: Upgrade\r\n"),
        *(b"Expect: 100-continue\r\n", b"Content-Encoding: gzip\r\n", b"\r\n", b"\0", b"0\r\n"),
        b"\x16\x03\x01\x02\x00",
    ]
)


@pytest.mark.fuzz
@given(garbage=st.lists(PIECES | st.binary(max_size=300), max_size=12).map(b"".join))
def test_garbage(tmp_path_factory: pytest.TempPathFactory, garbage: bytes) -> None:
    """Whatever a stranger sends, the next client is answered, and no traceback is logged."""
    problems: list[object] = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = problems.append  # type: ignore[assignment,method-assign]
    logging.getLogger().addHandler(handler)

    async def play() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, what: problems.append(what))
        served = Served(tmp_path_factory.mktemp("fuzz"))
        async with served.serving(FEW):
            _, writer = await asyncio.open_unix_connection(served.path)
            writer.write(garbage)
            writer.write_eof()
            with contextlib.suppress(OSError):
                await writer.drain()
            assert b"200 OK" in await served.answer()
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    try:
        run_virtually(play())
    finally:
        logging.getLogger().removeHandler(handler)
    assert not problems
