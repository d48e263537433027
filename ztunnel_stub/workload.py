"""One pod that the stub serves: its listeners, and what comes through them."""

import asyncio
import contextlib
import os
import socket
from collections.abc import Generator
from dataclasses import dataclass

import structlog
from structlog.typing import FilteringBoundLogger

from nodeagent.netns.netns import Netns, NetnsId
from nodeagent.netns.threads import NetnsThreads
from ztunnel_stub import dns
from ztunnel_stub.address import Endpoint, original_destination
from ztunnel_stub.codec import WorkloadInfo
from ztunnel_stub.connection import Connection, Direction
from ztunnel_stub.intake import Intake, Work
from ztunnel_stub.relay import abort, relay
from ztunnel_stub.sockets import OWN_PORTS, Listeners, PodSockets

MAX_CONNECTIONS = 1024
"""Per workload. A connection costs two descriptors, and few processes have more than 20,000."""

MAX_QUERIES = 128
"""DNS queries over UDP in flight, per workload: each has a socket of its own."""

_CONNECT_TIMEOUT = 10.0
_QUERY_TIMEOUT = 5.0

log: FilteringBoundLogger = structlog.get_logger()


class RefusedError(OSError):
    """The stub does not pass this connection on; the text says why."""


@dataclass(frozen=True, slots=True)
class Serving:
    """What all workloads share."""

    tasks: asyncio.TaskGroup
    threads: NetnsThreads
    resolver: Endpoint | None
    """Where DNS goes, seen from inside the pods; without one they get SERVFAIL."""
    drain_timeout: float
    """Seconds that open connections have to end by themselves."""


class Workload:
    """Serves one pod in one network namespace until `close` and `drain`."""

    __slots__ = (
        "_connections",
        "_intake",
        "_namespace",
        "_queries",
        "_serving",
        "_sockets",
        "info",
        "uid",
    )

    def __init__(self, *, uid: str, info: WorkloadInfo, namespace: Netns, serving: Serving) -> None:
        """Own `namespace` from now on."""
        self.uid = uid
        self.info = info
        self._namespace = namespace
        self._serving = serving
        self._sockets = PodSockets(namespace, serving.threads)
        self._connections: set[Connection] = set()
        self._intake = Intake(serving.tasks, limit=MAX_CONNECTIONS, name=str(info))
        self._queries = Intake(serving.tasks, limit=MAX_QUERIES, name=str(info))

    @property
    def netns(self) -> NetnsId:
        """Which namespace it serves, or would."""
        return self._namespace.id

    @property
    def connections(self) -> frozenset[Connection]:
        """Those that are open now."""
        return frozenset(self._connections)

    async def start(self) -> None:
        """Open the listeners. Raises ``ListenError``: try again, or close and drain."""
        listeners: Listeners = await self._sockets.listen()
        self._intake.add(listeners.outbound, self._accept_outbound)
        self._intake.add(listeners.inbound, self._accept_inbound)
        self._intake.add(listeners.hbone, self._accept_hbone)
        for listener in listeners.dns_tcp:
            self._intake.add(listener, self._accept_dns)
        for listener in listeners.dns_udp:
            self._queries.add(listener, self._take_query)
        self._intake.start()
        self._queries.start()

    def discard(self) -> None:
        """Let go of the namespace of a workload that never started."""
        self._namespace.close()

    def close(self) -> None:
        """Accept nothing more. `drain` must follow."""
        self._intake.close()
        self._queries.close()

    async def drain(self) -> None:
        """Let open connections end, cut those that last, and let go of the namespace."""
        try:
            async with asyncio.TaskGroup() as drains:
                for intake in (self._intake, self._queries):
                    drains.create_task(intake.drain(self._serving.drain_timeout), name="drain")
        finally:
            self._namespace.close()

    def _accept_outbound(self, listener: socket.socket) -> Work:
        return self._serve(Direction.OUTBOUND, *listener.accept())

    def _accept_inbound(self, listener: socket.socket) -> Work:
        return self._serve(Direction.INBOUND, *listener.accept())

    def _accept_hbone(self, listener: socket.socket) -> Work:
        return self._serve(Direction.HBONE, *listener.accept())

    def _accept_dns(self, listener: socket.socket) -> Work:
        return self._serve(Direction.DNS, *listener.accept())

    async def _serve(
        self, direction: Direction, client: socket.socket, peer: tuple[str, int]
    ) -> None:
        with client:
            client.setblocking(False)
            connection = Connection(
                direction=direction,
                source=Endpoint.of_sockaddr(peer),
                destination=original_destination(client),
            )
            with self._logged(connection):
                try:
                    await self._pass_on(client, connection)
                except BaseException:
                    abort(client)
                    raise

    async def _pass_on(self, client: socket.socket, connection: Connection) -> None:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _check(connection, local=Endpoint.of_sockaddr(client.getsockname()))
        destination = connection.destination
        if connection.direction is Direction.DNS:
            if self._serving.resolver is None:
                await _refuse_queries(client, connection)
                return
            destination = self._serving.resolver
        # The app sees its client, not the proxy; the reply comes back by the rules' mark.
        source = connection.source if connection.direction is Direction.INBOUND else None
        async with asyncio.timeout(_CONNECT_TIMEOUT):
            upstream = await self._sockets.connect(destination, source=source)
        with upstream:
            try:
                await relay(client, upstream, connection)
            except BaseException:
                abort(upstream)
                raise

    def _take_query(self, listener: socket.socket) -> Work:
        query, peer = listener.recvfrom(dns.MAX_MESSAGE)
        return self._answer(listener, query, peer)

    async def _answer(self, listener: socket.socket, query: bytes, peer: tuple[str, int]) -> None:
        connection = Connection(
            direction=Direction.DNS,
            source=Endpoint.of_sockaddr(peer),
            destination=self._serving.resolver or Endpoint.of_sockaddr(listener.getsockname()),
        )
        with self._logged(connection):
            if not dns.is_query(query):
                raise RefusedError("not a DNS query")
            connection.count_sent(len(query))
            try:
                answer = await self._ask(query)
            except OSError:
                connection.count_received(listener.sendto(dns.servfail(query), peer))
                raise
            # A full send buffer loses the answer, as UDP may; the client asks again.
            connection.count_received(listener.sendto(answer, peer))

    async def _ask(self, query: bytes) -> bytes:
        resolver = self._serving.resolver
        if resolver is None:
            return dns.servfail(query)
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(_QUERY_TIMEOUT):
            with await self._sockets.connect(resolver, kind=socket.SOCK_DGRAM) as upstream:
                await loop.sock_sendall(upstream, query)
                while (answer := await loop.sock_recv(upstream, dns.MAX_MESSAGE))[:2] != query[:2]:
                    pass
                return answer

    @contextlib.contextmanager
    def _logged(self, connection: Connection) -> Generator[None, None, None]:
        self._connections.add(connection)
        error = {}
        try:
            yield
        except asyncio.CancelledError:
            error = {"error": "cut: the drain's time is up"}
            raise
        except TimeoutError:
            error = {"error": "no answer in time"}
        except OSError as broken:
            # asyncio puts a text of its own into the errors of a connect.
            error = {"error": os.strerror(broken.errno) if broken.errno else str(broken)}
        finally:
            self._connections.discard(connection)
            log.info(
                "connection ended",
                pod=str(self.info),
                uid=self.uid,
                **connection.fields(),
                **error,
            )


def _check(connection: Connection, *, local: Endpoint) -> None:
    """Raise ``RefusedError`` for what is not passed on."""
    if connection.direction is Direction.HBONE:
        raise RefusedError("this stub does not speak HBONE (HTTP/2 CONNECT over mutual TLS)")
    if connection.direction is Direction.OUTBOUND and connection.destination == local:
        raise RefusedError(
            f"port {local.port} was dialled directly, without redirection: passing it on would loop"
        )
    if connection.direction is Direction.INBOUND and connection.destination.port in OWN_PORTS:
        raise RefusedError("the destination is one of the proxy's own ports: it would loop")


async def _refuse_queries(client: socket.socket, connection: Connection) -> None:
    """Answer every query on a TCP connection with SERVFAIL, until the client ends it."""
    loop = asyncio.get_running_loop()
    buffer = bytearray()
    while data := await loop.sock_recv(client, dns.MAX_MESSAGE):
        connection.count_sent(len(data))
        buffer += data
        while (query := dns.take_framed(buffer)) is not None:
            if not dns.is_query(query):
                raise RefusedError("not a DNS query")
            answer = dns.framed(dns.servfail(query))
            await loop.sock_sendall(client, answer)
            connection.count_received(len(answer))
