"""Requests to the Kubernetes API: parsed JSON in and out, and one kind of error.

Addresses and credentials are those of `access.py`. Sizes, times and the number of bytes
that an answer may have are bounded here.
"""

import contextlib
import json
import socket
from collections.abc import AsyncIterator, Mapping
from typing import Any, Self
from urllib.parse import urlencode

import aiohttp

from nodeagent.cluster.access import Access, NoClusterError, find_access
from nodeagent.observer import NOBODY, Observer

__all__ = ["ApiError", "ApiServer", "NoClusterError"]

JSON = "application/json"
MERGE_PATCH = "application/merge-patch+json"
MAX_OBJECT = 16 << 20
"""Bytes of one object; etcd takes objects of 1.5 MB, which JSON makes larger."""
_MAX_TEXT = 300
_MAX_ERROR = 64 << 10
_TIMEOUT = 30.0
_CONNECT_TIMEOUT = 10.0
_KEEPALIVE = {socket.TCP_KEEPIDLE: 30, socket.TCP_KEEPINTVL: 10, socket.TCP_KEEPCNT: 3}
"""Seconds of silence before the kernel asks, seconds between two questions, and how many."""
_METHODS = {"get": "GET", "list": "GET", "watch": "GET", "patch": "PATCH", "create": "POST"}
"""The HTTP method of each of Kubernetes' verbs that the agent uses."""
_NO_PARAMS: Mapping[str, str] = {}


class ApiError(Exception):
    """The API server refused, or did not answer; the text is one line for people."""

    def __init__(
        self,
        text: str,
        *,
        status: int | None = None,
        retry_after: float | None = None,
        causes: frozenset[str] = frozenset(),
    ) -> None:
        line = " ".join(text.split())
        super().__init__(line if len(line) <= _MAX_TEXT else f"{line[:_MAX_TEXT]}…")
        self.status = status
        """The HTTP status; None where there was no answer that could be read."""
        self.retry_after = retry_after
        """Seconds that the server wants the client to wait; None where it does not say."""
        self.causes = causes
        """The server's machine-readable reasons: ``ResourceVersionTooLarge``, say."""

    @property
    def missing(self) -> bool:
        """Whether there is no such object (404)."""
        return self.status == 404

    @property
    def conflict(self) -> bool:
        """Whether the object has changed, or exists already (409)."""
        return self.status == 409

    @property
    def denied(self) -> bool:
        """Whether the server does not know the agent (401), or forbids the request (403)."""
        return self.status in (401, 403)


class GarbledError(ApiError):
    """The answer is not what an API server sends; the same request would be in vain."""


class SilenceError(ApiError):
    """A stream has brought no byte for as long as its caller wanted to wait."""


class ApiServer:
    """One cluster's API. Any number of requests at once."""

    observer = NOBODY
    """Is told of each answer, and of more by those who follow a resource."""

    def __init__(self, access: Access, observer: Observer = NOBODY) -> None:
        """Use `access`, which stays the caller's; `connect` makes both."""
        self._access = access
        self.observer = observer

    @classmethod
    @contextlib.asynccontextmanager
    async def connect(
        cls, kubeconfig: str | None, observer: Observer = NOBODY
    ) -> AsyncIterator[Self]:
        """Read the credentials; nothing is asked of the server yet.

        `kubeconfig` is a path; None means that the agent is in a pod of the cluster.
        Raises ``NoClusterError``.
        """
        async with contextlib.aclosing(await find_access(kubeconfig)) as access:
            yield cls(access, observer)

    @property
    def account(self) -> str:
        """The user as which the agent asks, in words; known after the first request."""
        return self._access.account

    async def get(
        self,
        path: str,
        *,
        params: Mapping[str, str] = _NO_PARAMS,
        accept: str = JSON,
        timeout: float = _TIMEOUT,  # noqa: ASYNC109 - aiohttp's own time-out does it
    ) -> dict[str, Any]:
        """Ask for an object, for `timeout` seconds. Raises ``ApiError``."""
        async with self._asked(
            "get", _url(path, params), headers={"Accept": accept}, limit=_limit(timeout)
        ) as response:
            return await _object(response)

    @contextlib.asynccontextmanager
    async def download(
        self, path: str, *, params: Mapping[str, str], accept: str
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Ask for an answer of any size, and return its body piece by piece as it arrives.

        Raises ``ApiError``, in the block too.
        """
        async with self._asked(
            "list", _url(path, params), headers={"Accept": accept}, limit=_limit(_TIMEOUT)
        ) as response:
            yield _pieces(response.content)

    async def patch(
        self,
        path: str,
        body: object,
        *,
        kind: str = MERGE_PATCH,
        params: Mapping[str, str] = _NO_PARAMS,
    ) -> dict[str, Any]:
        """Change an object, and return it as it is then. Raises ``ApiError``."""
        return await self._send("patch", _url(path, params), body, kind=kind)

    async def post(self, path: str, body: object) -> dict[str, Any]:
        """Make an object, and return it. Raises ``ApiError``."""
        return await self._send("create", path, body, kind=JSON)

    @contextlib.asynccontextmanager
    async def stream(
        self, path: str, *, params: Mapping[str, str], accept: str, silence: float
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Ask for an answer without end, and return its lines. An incomplete last line is left out.

        Raises ``ApiError``, in the block too: ``SilenceError`` after `silence` seconds without
        a byte, ``GarbledError`` for a line that is too long.
        """
        limit = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT, sock_read=silence)
        async with self._asked(
            "watch", _url(path, params), headers={"Accept": accept}, limit=limit
        ) as response:
            _notice_a_dead_peer(response)
            yield _lines(response.content)

    async def _send(self, verb: str, url: str, body: object, *, kind: str) -> dict[str, Any]:
        headers = {"Accept": JSON, "Content-Type": kind}
        async with self._asked(
            verb, url, headers=headers, limit=_limit(_TIMEOUT), body=body
        ) as response:
            return await _object(response)

    @contextlib.asynccontextmanager
    async def _asked(
        self,
        verb: str,
        url: str,
        *,
        headers: dict[str, str],
        limit: aiohttp.ClientTimeout,
        body: object = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        client = self._access.client
        try:
            authorization = await self._access.authorization()
        except (OSError, ValueError) as error:
            raise ApiError(f"no credential: {error}") from error
        if authorization:
            headers["Authorization"] = authorization
        answered = False
        try:
            answer = await client.request(
                _METHODS[verb],
                client.configuration.host + url,
                headers=headers,
                body=body,
                _request_timeout=limit,
            )
            response: aiohttp.ClientResponse = answer.response
            answered = True
            self.observer.api_answered(verb, str(response.status))
            try:
                if response.status >= 400:
                    raise await self._refusal(response)
                yield response
            finally:
                _drop(response)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            if not answered:
                self.observer.api_answered(verb, "none")
            raise ApiError(_words(error)) from error

    async def _refusal(self, response: aiohttp.ClientResponse) -> ApiError:
        if response.status == 401:
            self._access.credential.refused()
        body = await response.content.read(_MAX_ERROR)
        text = body.decode(errors="replace").strip()
        said = status_error(None)
        with contextlib.suppress(ValueError, RecursionError):
            said = status_error(json.loads(text))
        after = response.headers.get("Retry-After", "")
        return ApiError(
            f"{str(said) or text or response.reason} ({response.status})",
            status=response.status,
            # The form with a date is for caches; no API server sends it.
            retry_after=float(after) if after.isascii() and after.isdigit() else None,
            causes=said.causes,
        )


def status_error(raw: Any) -> ApiError:
    """A ``Status`` object as an error; one without text where `raw` is no such object."""
    raw = raw if isinstance(raw, dict) else {}
    message, code, details = raw.get("message"), raw.get("code"), raw.get("details")
    causes = details.get("causes") if isinstance(details, dict) else None
    reasons = [each.get("reason") for each in causes or () if isinstance(each, dict)]
    return ApiError(
        message if isinstance(message, str) else "",
        status=code if isinstance(code, int) else None,
        causes=frozenset(reason for reason in reasons if isinstance(reason, str)),
    )


def _limit(seconds: float) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=seconds, sock_connect=_CONNECT_TIMEOUT)


def _url(path: str, params: Mapping[str, str]) -> str:
    return f"{path}?{urlencode(params)}" if params else path


def _drop(response: aiohttp.ClientResponse) -> None:
    """Close the connection, unless the answer was read to its end and the pool has it again."""
    if (connection := response.connection) and connection.transport:
        # A TLS connection that is closed in good order waits 30 s for a peer that is dead.
        connection.transport.abort()
    response.close()


async def _object(response: aiohttp.ClientResponse) -> dict[str, Any]:
    try:
        value = json.loads(await _body(response))
    except (ValueError, RecursionError) as error:
        raise ApiError(f"the answer is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ApiError("the answer is not an object")
    return value


async def _body(response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for piece in _pieces(response.content):
        body += piece
        if len(body) > MAX_OBJECT:
            raise GarbledError(f"an object of more than {MAX_OBJECT} bytes")
    return bytes(body)


async def _pieces(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    while piece := await content.readany():
        yield piece


def _notice_a_dead_peer(response: aiohttp.ClientResponse) -> None:
    """Have the kernel end the connection within a minute of the other end's death."""
    if (connection := response.connection) and connection.transport:
        connected = connection.transport.get_extra_info("socket")
        if connected is None:  # TLS: the connection has ended, and nobody was told yet
            return
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEPALIVE.items():
            connected.setsockopt(socket.IPPROTO_TCP, option, value)


async def _lines(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    line = bytearray()
    while chunk := await _chunk(content):
        for number, part in enumerate(chunk.split(b"\n")):
            if number > 0:
                yield bytes(line)
                line.clear()
            line += part
            if len(line) > MAX_OBJECT:
                raise GarbledError(f"a line of more than {MAX_OBJECT} bytes")


async def _chunk(content: aiohttp.StreamReader) -> bytes:
    try:
        return await content.readany()
    except TimeoutError as error:
        raise SilenceError("no answer in time") from error


def _words(error: Exception) -> str:
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return f"the server's certificate is not one that the agent trusts: {error}"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, aiohttp.ClientPayloadError):
        return "the connection was cut in the middle of the answer"
    return str(error) or type(error).__name__
