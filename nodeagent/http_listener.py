"""HTTP on a listening socket, with bounds on the number, the time and the size of requests.

Any pod of the node can connect to the port for health probes, and send nothing, or send
slowly, or send very much. What such connections can cost is bounded here. They cannot shut
out a client that asks properly either: where there are too many connections, the oldest one
that has not sent its request is closed for the new one. All HTTP of the agent is served
through this module.
"""

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass

import structlog
from aiohttp import http_exceptions, web

from nodeagent.linux.unix_sockets import accepting

log = structlog.get_logger()

_LINE, _FIELD, _FIELDS = 2048, 2048, 32
"""At the most: bytes of the request line, bytes of a header field, and header fields. That is
ten times what any client of the agent sends, and 64 KiB for each connection."""
_faults = logging.getLogger("nodeagent.http")
_faults.addFilter(lambda record: not _is_the_clients(record) and _is_news(record))
"""aiohttp logs a traceback for each request that is not HTTP; with those, any pod could fill the
disk."""
_WARN_AGAIN = 60.0
"""Seconds between two warnings that one socket has too many connections, and between two
tracebacks of one failure of a handler's, which a stranger may know how to bring about."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What all clients of one socket together may cost."""

    connections: int
    """At one time. At the least three times `nodeagent.linux.unix_sockets.AT_ONCE`, so that a new
    connection is read before later ones can take its place."""
    seconds: float
    """From the connection to the end of the request's header, and once more for the client to
    take the answer. The handler itself has no limit here."""
    body: int = 0
    """Bytes of a request's body."""


def application(bounds: Bounds) -> web.Application:
    """Make an application for `serve_http`; the caller adds handlers."""
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

    A connection that `may_ask` refuses is closed unread. A handler is cancelled when its
    client goes away, and at the end of the block, `stop_timeout` seconds later.
    `name` is for the log.
    """
    runner = web.AppRunner(
        app,
        access_log=None,
        logger=_faults,
        handler_cancellation=True,
        shutdown_timeout=stop_timeout,
        lingering_time=0,  # do not wait for the rest of a body that is too large
        auto_decompress=False,
        max_line_size=_LINE,
        max_field_size=_FIELD,
        max_headers=_FIELDS,
    )
    await runner.setup()
    server = runner.server
    assert server is not None  # noqa: S101 - for mypy: `setup` has made it
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


_MOST_TOLD = 100
"""Failures that are remembered for that."""
_last_told: dict[tuple[object, ...], float] = {}
"""When a failure was logged, on the monotonic clock, by its kind and its place in the code."""


def _is_news(record: logging.LogRecord) -> bool:
    kind, _, traceback = record.exc_info or (None, None, None)
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    where = (record.msg, kind, traceback and (traceback.tb_frame.f_code, traceback.tb_lineno))
    now = time.monotonic()
    if now - _last_told.get(where, float("-inf")) < _WARN_AGAIN:
        return False
    if len(_last_told) >= _MOST_TOLD:
        _last_told.clear()
    _last_told[where] = now
    return True


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
        """Connections that wait for their client to send the request or to take the answer, the
        oldest first."""
        self.answering: set[_Connection] = set()
        """Connections whose handler is at work."""
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
        """Close the connections that are left."""
        for connection in [*self.waiting, *self.answering]:
            connection.abort()
        if self._starting:
            await asyncio.wait(self._starting)

    def _started(self, starting: "asyncio.Task[object]") -> None:
        self._starting.discard(starting)
        if not starting.cancelled():
            starting.exception()  # such as of a client that has gone away at once: no fault

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
    """One client's connection: passes everything on to aiohttp, and is closed at its deadline."""

    def __init__(self, crowd: _Crowd) -> None:
        self._crowd = crowd
        self._http: web.RequestHandler | None = None
        self._transport: asyncio.Transport | None = None
        self._over = False
        self._deadline = self._set_deadline()

    @contextlib.contextmanager
    def answering(self) -> Iterator[None]:
        """Have no deadline in the block, in which the handler works and the client waits."""
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
        """Close the connection now, whatever is under way."""
        self._end()
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - for mypy: a stream has no other
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
