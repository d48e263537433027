"""Sockets that the agent listens on: Unix sockets of its own user, and TCP ports."""

import asyncio
import contextlib
import errno
import os
import socket
import stat
from collections.abc import Callable, Iterator

import structlog

log = structlog.get_logger()

AT_ONCE = 8
"""Connections that are accepted in one turn of the event loop, so that a flood of them does not
keep the loop from other work."""
_QUEUE = 1024
"""Connections that the kernel keeps until they are accepted; net.core.somaxconn bounds it."""
_PAUSE = 1.0
"""Seconds until accepting is tried again, where no descriptor is left."""


@contextlib.contextmanager
def listening(path: str, kind: socket.SocketKind, *, setting: str) -> Iterator[socket.socket]:
    """Listen at `path`, mode 0600, non-blocking; the file goes at the end.

    A socket that an earlier agent left there is replaced. A socket that a newer agent has
    put in its place stays at the end. Raises ``OSError`` that names
    the path and the `setting` that moves it.
    """
    with socket.socket(socket.AF_UNIX, kind) as listener:
        try:
            os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
            _remove_stale(path)
            # The file gets the mode of the unbound socket, and so is never open to other users.
            os.fchmod(listener.fileno(), 0o600)
            listener.bind(path)
            own = os.lstat(path)
            listener.listen(_QUEUE)
            listener.setblocking(False)
        except OSError as error:
            raise OSError(
                error.errno, f"cannot listen at {path} ({setting}): {error.strerror}"
            ) from error
        try:
            yield listener
        finally:
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.lstat(path), own):
                    os.unlink(path)


@contextlib.contextmanager
def listening_on_network(address: str, *, setting: str) -> Iterator[list[socket.socket]]:
    """Listen on `address` (``[HOST]:PORT``) for each IP version, non-blocking.

    Raises ``OSError`` that names the address and the `setting` that it comes from.
    """
    host, _, port = address.rpartition(":")
    with contextlib.ExitStack() as opened:
        listeners: list[socket.socket] = []
        try:
            for family, kind, protocol, _, where in socket.getaddrinfo(
                host.strip("[]") or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            ):
                try:
                    listener = opened.enter_context(socket.socket(family, kind, protocol))
                except OSError as error:
                    if error.errno == errno.EAFNOSUPPORT:  # a kernel without IPv6
                        continue
                    raise
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                listener.bind(where)
                listener.listen(_QUEUE)
                listener.setblocking(False)
                listeners.append(listener)
        except OSError as error:
            raise OSError(
                error.errno, f"cannot listen on {address} ({setting}): {error.strerror}"
            ) from error
        yield listeners


@contextlib.contextmanager
def accepting(
    listener: socket.socket, admit: Callable[[socket.socket], None], *, name: str
) -> Iterator[None]:
    """Give each new connection to `admit`, which takes it over, until the end of the block.

    `name` is for the log.
    """
    acceptor = _Acceptor(listener, admit, name)
    acceptor.start()
    try:
        yield
    finally:
        acceptor.stop()


class _Acceptor:
    """Accepts in a callback, because a cancelled ``loop.sock_accept`` could lose a connection."""

    def __init__(
        self, listener: socket.socket, admit: Callable[[socket.socket], None], name: str
    ) -> None:
        self._listener = listener
        self._admit = admit
        self._log = log.bind(socket=name)
        self._loop = asyncio.get_running_loop()
        self._resumption: asyncio.TimerHandle | None = None
        self._exhausted = False

    def start(self) -> None:
        self._loop.add_reader(self._listener, self._accept)

    def stop(self) -> None:
        self._loop.remove_reader(self._listener)
        if self._resumption is not None:
            self._resumption.cancel()

    def _accept(self) -> None:
        for _ in range(AT_ONCE):
            try:
                connected, _ = self._listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                self._pause(error)
                return
            self._exhausted = False
            connected.setblocking(False)
            self._admit(connected)

    def _pause(self, error: OSError) -> None:
        # Out of descriptors or memory. The listener stays readable, so that to go on would keep
        # the loop busy.
        if not self._exhausted:
            self._log.error("cannot accept a connection; tries again", reason=error.strerror)
        self._exhausted = True
        self._loop.remove_reader(self._listener)
        self._resumption = self._loop.call_later(_PAUSE, self.start)


def _remove_stale(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise FileExistsError(errno.EEXIST, "something that is not a socket is in its place")
        os.unlink(path)
