"""The sockets that a ztunnel has inside a pod's network namespace."""

import asyncio
import contextlib
import errno
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TypeVar

from nodeagent.netns.netns import Netns
from nodeagent.netns.threads import NetnsThreads
from ztunnel_stub.address import Endpoint

T = TypeVar("T")

MARK = 0x539
OUTBOUND_PORT = 15001
INBOUND_PORT = 15006
HBONE_PORT = 15008
DNS_PORT = 15053
OWN_PORTS = frozenset({OUTBOUND_PORT, INBOUND_PORT, HBONE_PORT, DNS_PORT})

_IPV6_TRANSPARENT = 75  # linux/in6.h
_BACKLOG = 1024


class ListenError(OSError):
    """A listener could not be opened; trying again later may help."""


@dataclass(frozen=True, slots=True)
class Listeners:
    """One pod's listening sockets. Their owner closes them."""

    outbound: socket.socket
    inbound: socket.socket
    hbone: socket.socket
    dns_tcp: tuple[socket.socket, ...]
    dns_udp: tuple[socket.socket, ...]

    def __iter__(self) -> Iterator[socket.socket]:
        yield from (self.outbound, self.inbound, self.hbone, *self.dns_tcp, *self.dns_udp)

    def close(self) -> None:
        """Close every one."""
        for listener in self:
            listener.close()


class PodSockets:
    """Opens sockets in one pod's namespace, each with ztunnel's mark on it."""

    __slots__ = ("_namespace", "_threads")

    def __init__(self, namespace: Netns, threads: NetnsThreads) -> None:
        """Borrow both."""
        self._namespace = namespace
        self._threads = threads

    async def listen(self) -> Listeners:
        """Open all listeners in one visit. Raises ``ListenError``; then none is open."""
        try:
            return await self._visit(_open_listeners, Listeners.close)
        except ListenError:
            raise
        except PermissionError as error:
            raise ListenError(
                "cannot enter the pod's network namespace: the stub needs CAP_SYS_ADMIN"
                " in the user namespace that owns it"
            ) from error
        except OSError as error:
            raise ListenError(f"cannot enter the pod's network namespace: {error}") from error

    async def connect(
        self,
        destination: Endpoint,
        *,
        kind: socket.SocketKind = socket.SOCK_STREAM,
        source: Endpoint | None = None,
    ) -> socket.socket:
        """Connect from inside the pod; from `source`'s address, whoever it belongs to.

        Raises ``OSError``. The caller owns the socket.
        """

        def open_socket() -> socket.socket:
            return _open_client(destination.family, kind, source)

        connection = await self._visit(open_socket, socket.socket.close)
        try:
            await asyncio.get_running_loop().sock_connect(connection, destination.sockaddr)
        except BaseException:
            connection.close()
            raise
        return connection

    async def _visit(self, function: Callable[[], T], close: Callable[[T], None]) -> T:
        visit = asyncio.ensure_future(self._threads.run(self._namespace, function))
        try:
            return await asyncio.shield(visit)
        except asyncio.CancelledError:
            # The thread cannot be called back, and what it opens would have no owner.
            with contextlib.suppress(OSError):
                close(await visit)
            raise


def _open_listeners() -> Listeners:
    with ExitStack() as opened:

        def keep(listener: socket.socket) -> socket.socket:
            return opened.enter_context(listener)

        listeners = Listeners(
            outbound=keep(_listen_anywhere(OUTBOUND_PORT, transparent=False)),
            inbound=keep(_listen_anywhere(INBOUND_PORT, transparent=True)),
            hbone=keep(_listen_anywhere(HBONE_PORT, transparent=True)),
            dns_tcp=tuple(map(keep, _listen_on_loopback(socket.SOCK_STREAM))),
            dns_udp=tuple(map(keep, _listen_on_loopback(socket.SOCK_DGRAM))),
        )
        opened.pop_all()
    return listeners


def _listen_anywhere(port: int, *, transparent: bool) -> socket.socket:
    """A dual-stack listener, or a v4 one where the kernel has no IPv6."""
    try:
        return _bound(Endpoint("::", port), socket.SOCK_STREAM, transparent=transparent)
    except ListenError as error:
        if error.errno != errno.EAFNOSUPPORT:
            raise
    return _bound(Endpoint("0.0.0.0", port), socket.SOCK_STREAM, transparent=transparent)  # noqa: S104


def _listen_on_loopback(kind: socket.SocketKind) -> Iterator[socket.socket]:
    # What the output hook redirects goes to the loopback address. A socket bound to that
    # address answers from it, and only such an answer is translated back by conntrack.
    yield _bound(Endpoint("127.0.0.1", DNS_PORT), kind)
    try:
        yield _bound(Endpoint("::1", DNS_PORT), kind)
    except ListenError as error:
        if error.errno not in {errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL}:
            raise


def _bound(local: Endpoint, kind: socket.SocketKind, *, transparent: bool = False) -> socket.socket:
    with ExitStack() as opened:
        try:
            listener = opened.enter_context(_marked(local.family, kind))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            # Two ztunnels listen side by side during a rolling update.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if local.family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, local.host != "::")
            if transparent:
                _make_transparent(listener)
            listener.bind(local.sockaddr)
            if kind == socket.SOCK_STREAM:
                listener.listen(_BACKLOG)
        except OSError as error:
            name = "tcp" if kind == socket.SOCK_STREAM else "udp"
            raise ListenError(
                error.errno, f"cannot listen on {local}/{name}: {error.strerror}"
            ) from error
        opened.pop_all()
    return listener


def _open_client(
    family: socket.AddressFamily, kind: socket.SocketKind, source: Endpoint | None
) -> socket.socket:
    with ExitStack() as opened:
        client = opened.enter_context(_marked(family, kind))
        if kind == socket.SOCK_STREAM:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if source is not None:
            _make_transparent(client)
            # The port is chosen at connect: it has to be free towards one destination only.
            client.setsockopt(socket.SOL_IP, socket.IP_BIND_ADDRESS_NO_PORT, 1)
            client.bind(Endpoint(source.host, 0, source.scope).sockaddr)
        opened.pop_all()
    return client


def _marked(family: socket.AddressFamily, kind: socket.SocketKind) -> socket.socket:
    with ExitStack() as opened:
        marked = opened.enter_context(socket.socket(family, kind | socket.SOCK_NONBLOCK))
        marked.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, MARK)
        opened.pop_all()
    return marked


def _make_transparent(sock: socket.socket) -> None:
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_TRANSPARENT, 1)
    else:
        sock.setsockopt(socket.SOL_IP, socket.IP_TRANSPARENT, 1)
