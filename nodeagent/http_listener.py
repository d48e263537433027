"""HTTP on a listening socket, bounded in number, time and size.

Any pod of the node can connect to the port for health probes, and say nothing, or
little and slowly, or a lot. What such connections can cost is bounded here, and they
never shut out a client that asks in good order: the oldest connection that has not
asked yet makes room for a new one. Every socket of the agent that speaks HTTP is
served through here.
"""

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass

import structlog
from aiohttp import http_exceptions, web

from nodeagent.linux.unix_sockets import accepting

log = structlog.get_logger()

_LINE, _FIELD, _FIELDS = 2048, 2048, 32
"""Bytes of the request's line, bytes of a header's field, and fields, at the most: ten
times what any client of the agent sends, and 64 KiB for a connection."""
_faults = logging.getLogger("nodeagent.http")
_faults.addFilter(lambda record: not _is_the_clients(record))
"""aiohttp logs a traceback for each request that is no HTTP: a stranger could fill the disk."""
_WARN_AGAIN = 60.0
"""Seconds between two warnings that one socket has too many connections."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What the clients of one socket may cost together."""

    connections: int
    """At one time; at the least three times `nodeagent.linux.unix_sockets.AT_ONCE`, so that a new
    connection is read before others can displace it."""
    seconds: float
    """For a connection until its request's header is there, and once more for taking
    the answer. How long the answer may take is the handler's own matter."""
    body: int = 0
    """Bytes of a request's body."""


def application(bounds: Bounds) -> web.Application:
    """Make an application to which handlers can be added; for `serve_http`."""
    app = web.Application(client_max_size=bounds.body, middlewares=[_one_request])
    app.on_response_prepare.append(_close_after)
    return app


@contextlib.asynccontextmanager
async def serve_http(
    listeners: Iterable[socket.socket],
    app: web.Application,
    bounds: Bounds,
    *,
    name: str,
    may_ask: Callable[[socket.socket], bool] = lambda _: True,
    stop_timeout: float = 1.0,
) -> AsyncIterator[None]:
    """Answer on `listeners`, which stay the caller's; one request for each connection.

    Of a connection that `may_ask` refuses not a byte is read. A handler is cancelled
    when its client goes away, and `stop_timeout` seconds after the end of the block.
    `name` is for the log.
    """
    runner = web.AppRunner(
        app,
        access_log=None,
        logger=_faults,
        handler_cancellation=True,
        shutdown_timeout=stop_timeout,
        lingering_time=0,  # the rest of a body that nobody wants is not waited for
        auto_decompress=False,
        max_line_size=_LINE,
        max_field_size=_FIELD,
        max_headers=_FIELDS,
    )
    await runner.setup()
    server = runner.server
    assert server is not None  # noqa: S101 - it is set up
    crowd = _Crowd(server, bounds, name)

    def admit(connected: socket.socket) -> None:
        if may_ask(connected):
            crowd.admit(connected)
        else:
            connected.close()

    try:
        with contextlib.ExitStack() as accepting_all:
            for listener in listeners:
                accepting_all.enter_context(accepting(listener, admit, name=name))
            yield
    finally:
        await runner.cleanup()
        await crowd.aclose()


def _is_the_clients(record: logging.LogRecord) -> bool:
    fault = record.exc_info[1] if record.exc_info else None
    return isinstance(fault, http_exceptions.HttpProcessingError)


@web.middleware
async def _one_request(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    transport = request.transport
    connection = transport.get_protocol() if transport else None
    if not isinstance(connection, _Connection):  # the client has gone meanwhile
        raise web.HTTPBadRequest
    with connection.answering():
        return await handler(request)


async def _close_after(_: web.Request, response: web.StreamResponse) -> None:
    response.force_close()


class _Crowd:
    """The connections to one socket."""

    def __init__(self, server: web.Server, bounds: Bounds, name: str) -> None:
        self.server = server
        self.bounds = bounds
        self.waiting: dict[_Connection, None] = {}
        """Those that wait for their client: for its request, or for it to take the answer.
        The oldest first."""
        self.answering: set[_Connection] = set()
        """Those whose client waits for the agent."""
        self._name = name
        self._starting: set[asyncio.Task[object]] = set()
        self._warned = float("-inf")

    def admit(self, connected: socket.socket) -> None:
        """Take over a new connection."""
        loop = asyncio.get_running_loop()
        if not self._make_room(loop.time()):
            connected.close()
            return
        connection = _Connection(self)
        self.waiting[connection] = None
        starting = loop.create_task(
            loop.connect_accepted_socket(lambda: connection, connected), name=f"{self._name} client"
        )
        self._starting.add(starting)
        starting.add_done_callback(self._started)

    async def aclose(self) -> None:
        """Cut off the connections that are left."""
        for connection in [*self.waiting, *self.answering]:
            connection.abort()
        if self._starting:
            await asyncio.wait(self._starting)

    def _started(self, starting: "asyncio.Task[object]") -> None:
        self._starting.discard(starting)
        if not starting.cancelled():
            starting.exception()  # a client that goes away at once is nobody's fault

    def _make_room(self, now: float) -> bool:
        if len(self.waiting) + len(self.answering) < self.bounds.connections:
            return True
        if now - self._warned > _WARN_AGAIN:
            self._warned = now
            log.warning(
                "too many connections; those that ask nothing make room, the oldest first",
                socket=self._name,
                limit=self.bounds.connections,
            )
        oldest = next(iter(self.waiting), None)
        if oldest is None:
            return False
        oldest.abort()
        return True


class _Connection(asyncio.Protocol):
    """One client. Passes on to aiohttp what happens, and ends when its time is over."""

    def __init__(self, crowd: _Crowd) -> None:
        self._crowd = crowd
        self._http: web.RequestHandler | None = None
        self._transport: asyncio.Transport | None = None
        self._over = False
        self._deadline = self._set_deadline()

    @contextlib.contextmanager
    def answering(self) -> Iterator[None]:
        """While the agent works on the answer, the client is not to blame for the time."""
        self._deadline.cancel()
        self._crowd.waiting.pop(self, None)
        self._crowd.answering.add(self)
        try:
            yield
        finally:
            self._crowd.answering.discard(self)
            if not self._over:
                self._crowd.waiting[self] = None
                self._deadline = self._set_deadline()

    def abort(self) -> None:
        """End it now, whatever is under way."""
        self._end()
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - of a stream it is
        if self._over:
            transport.abort()
            return
        self._transport = transport
        self._http = self._crowd.server()
        self._http.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end()
        if self._http is not None:
            self._http.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._http is not None and not self._over:
            self._http.data_received(data)

    def eof_received(self) -> bool | None:
        if self._http is not None:
            self._http.eof_received()
        return None

    def pause_writing(self) -> None:
        if self._http is not None:
            self._http.pause_writing()

    def resume_writing(self) -> None:
        if self._http is not None:
            self._http.resume_writing()

    def _set_deadline(self) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(self._crowd.bounds.seconds, self.abort)

    def _end(self) -> None:
        self._over = True
        self._deadline.cancel()
        self._crowd.waiting.pop(self, None)
        self._crowd.answering.discard(self)
