"""What a network does to the agent, and what an API server does on a bad day.

Stands in front of the real server, with its certificate, and passes on what it is not
told to spoil. Rules name requests by a regular expression, searched for in
``GET /api/v1/pods?watch=1``.
"""

import asyncio
import contextlib
import json
import re
import ssl
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import aiohttp
from aiohttp import web
from yarl import URL

from tests.cluster.control_plane import ControlPlane

_HOP_BY_HOP = frozenset({"connection", "transfer-encoding", "content-length", "host", "keep-alive"})
_ANYTHING = ""


@dataclass(slots=True, kw_only=True)
class _Rule:
    match: re.Pattern[str]
    times: int
    answer: Callable[[], web.Response] | None = None
    half_line: bool = False
    keep: asyncio.Event | None = None


@dataclass(slots=True, eq=False)
class _Watch:
    request: str
    response: web.StreamResponse
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class FaultProxy:
    """Runs for its ``async with`` block; `url` is where clients go."""

    def __init__(self, control_plane: ControlPlane) -> None:
        self._server_url = control_plane.url
        self._tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._tls.load_cert_chain(control_plane.ca, control_plane.key)
        self._trusted = ssl.create_default_context(cafile=str(control_plane.ca))
        self.requests: list[str] = []
        """Everything that was asked, passed on or not: ``GET /api/v1/pods?watch=1``."""
        self.delay = 0.0
        """Seconds that each request waits before it is passed on."""
        self.kept = 0
        """How many answers of the server were kept back so far."""
        self._rules: list[_Rule] = []
        self._silent: set[object] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._watches: set[_Watch] = set()
        self._upstream: set[asyncio.Transport] = set()
        self._port = 0

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=self._trusted, limit=0),
            auto_decompress=False,
            timeout=aiohttp.ClientTimeout(total=None),
        )
        server = web.Server(self._handle, handler_cancellation=True)
        self._runner = web.ServerRunner(server, shutdown_timeout=0.1)
        await self._runner.setup()
        await self.up()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.cut()
        await self._runner.cleanup()
        await self._session.close()
        for transport in self._upstream:
            # One that was left in the middle of an answer waits for the server's goodbye.
            transport.abort()
        # Aborted transports close in the loop's next round, which would be after its end.
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self._port}"

    def count(self, match: str = _ANYTHING) -> int:
        """How many requests were made so far of those that `match` names."""
        return sum(1 for request in self.requests if re.search(match, request))

    def last(self, match: str) -> str:
        """The latest request of those that `match` names."""
        return next(each for each in reversed(self.requests) if re.search(match, each))

    async def up(self) -> None:
        """Take connections (again), at the same address."""
        site = web.TCPSite(self._runner, "127.0.0.1", self._port, ssl_context=self._tls)
        await site.start()
        self._site = site
        self._port = self._runner.addresses[-1][1]

    async def down(self) -> None:
        """Refuse connections, and reset those that are open."""
        await self._site.stop()
        self.cut()

    def cut(self) -> None:
        """Reset every connection that is open; new ones are welcome."""
        for transport in self._transports():
            transport.abort()

    def stall(self) -> None:
        """Let nothing more pass on the connections that are open: to the client they
        look alive for ever. New ones work.
        """
        self._silent.update(self._transports())

    def hold(self) -> None:
        """Pass nothing on, on no connection, until `release`; nothing is lost."""
        self._flowing.clear()

    def release(self) -> None:
        self._flowing.set()

    def answer(
        self,
        status: int,
        body: str = "",
        *,
        match: str = _ANYTHING,
        times: int = 1,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Answer the next `times` requests that match in the server's place."""

        def answer() -> web.Response:
            return web.Response(status=status, text=body, headers=headers)

        self._rules.append(_Rule(match=re.compile(match), times=times, answer=answer))

    def keep_answer(self, *, match: str) -> asyncio.Event:
        """Ask the server what the next request that matches asks, and pass its answer on only
        when the event is set.
        """
        event = asyncio.Event()
        self._rules.append(_Rule(match=re.compile(match), times=1, keep=event))
        return event

    def obey(self) -> None:
        """Forget what was still to be done to requests."""
        self._rules.clear()

    def answer_gone(self, *, match: str = _ANYTHING, times: int = 1) -> None:
        """410, as where the version that was asked for is too old."""
        body = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": "too old resource version: 1 (2)",
            "reason": "Expired",
            "code": 410,
        }
        headers = {"Content-Type": "application/json"}
        self.answer(410, json.dumps(body), match=match, times=times, headers=headers)

    def answer_busy(
        self, *, retry_after: int | str = 1, match: str = _ANYTHING, times: int = 1
    ) -> None:
        """429 with ``Retry-After``, and no ``Status`` object."""
        headers = {"Retry-After": str(retry_after)}
        self.answer(429, "Too many requests\n", match=match, times=times, headers=headers)

    def truncate(self, *, match: str = "watch=") -> None:
        """Break the next line of one watch in the middle, and end the answer."""
        self._rules.append(_Rule(match=re.compile(match), times=1, half_line=True))

    def watched(self, match: str) -> bool:
        """Whether the server has answered a watch that matches, and it stands."""
        return any(re.search(match, watch.request) for watch in self._watches)

    async def inject(self, line: bytes, *, match: str = _ANYTHING) -> int:
        """Put a line of our own into the open watches; in how many."""
        chosen = [watch for watch in self._watches if re.search(match, watch.request)]
        for watch in chosen:
            async with watch.lock:
                await watch.response.write(line)
        return len(chosen)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        asked = f"{request.method} {request.path_qs}"
        self.requests.append(asked)
        await asyncio.sleep(self.delay)
        await self._may_pass(request)
        if rule := self._due(asked, lambda rule: rule.answer is not None):
            assert rule.answer
            return rule.answer()
        try:
            async with self._passed_on(request) as answer:
                if answer.connection and answer.connection.transport:
                    self._upstream.add(answer.connection.transport)
                if rule := self._due(asked, lambda rule: rule.keep is not None):
                    assert rule.keep
                    body = await answer.read()
                    self.kept += 1
                    await rule.keep.wait()
                    return web.Response(status=answer.status, body=body)
                return await self._relay(request, asked, answer)
        except (aiohttp.ClientError, OSError):
            # The server is away, and this is how that looks to a client.
            if request.transport:
                request.transport.abort()
            return web.Response(status=502)

    def _passed_on(
        self, request: web.BaseRequest
    ) -> "aiohttp.client._BaseRequestContextManager[aiohttp.ClientResponse]":
        kept = {k: v for k, v in request.headers.items() if k.lower() not in _HOP_BY_HOP}
        return self._session.request(
            request.method,
            URL(self._server_url + request.raw_path, encoded=True),
            headers=kept,
            data=request.content if request.can_read_body else None,
            allow_redirects=False,
        )

    async def _relay(
        self, request: web.BaseRequest, asked: str, answer: aiohttp.ClientResponse
    ) -> web.StreamResponse:
        kept = {k: v for k, v in answer.headers.items() if k.lower() not in _HOP_BY_HOP}
        response = web.StreamResponse(status=answer.status, headers=kept)
        await self._may_pass(request)
        await response.prepare(request)
        watching = "watch=" in asked
        with self._noted(_Watch(asked, response)) as watch:
            # A watch is relayed by the line, so that one of ours can stand between two.
            pieces = answer.content if watching else answer.content.iter_any()
            async for piece in pieces:
                await self._may_pass(request)
                if watching and self._due(asked, lambda rule: rule.half_line):
                    await response.write(piece[: len(piece) // 2])
                    break
                async with watch.lock:
                    await response.write(piece)
        await response.write_eof()
        return response

    @contextlib.contextmanager
    def _noted(self, watch: _Watch) -> Iterator[_Watch]:
        if "watch=" in watch.request:
            self._watches.add(watch)
        try:
            yield watch
        finally:
            self._watches.discard(watch)

    async def _may_pass(self, request: web.BaseRequest) -> None:
        await self._flowing.wait()
        if request.transport in self._silent:
            # For good: the handler is cancelled when the connection goes.
            await asyncio.Event().wait()

    def _due(self, asked: str, wanted: Callable[[_Rule], bool]) -> _Rule | None:
        for rule in self._rules:
            if wanted(rule) and rule.match.search(asked):
                rule.times -= 1
                if rule.times <= 0:
                    self._rules.remove(rule)
                return rule
        return None

    def _transports(self) -> list[asyncio.Transport]:
        server = self._runner.server
        assert server
        connections = server.connections
        return [
            each.transport for each in connections if isinstance(each.transport, asyncio.Transport)
        ]
