"""Taking work from listening sockets, up to a bound."""

import asyncio
import errno
import socket
from collections.abc import Callable, Coroutine

import structlog
from structlog.typing import FilteringBoundLogger

Work = Coroutine[None, None, None]
Take = Callable[[socket.socket], Work]

_PER_WAKEUP = 64
"""One busy listener lets the others have their turn after this many."""

_PAUSE = 1.0
"""Seconds without a new try where the process has run out of descriptors or memory."""

_TRANSIENT = frozenset({errno.ECONNABORTED, errno.EINTR, errno.ECONNREFUSED, errno.EPROTO})

log: FilteringBoundLogger = structlog.get_logger()


class Intake:
    """Runs one task for each thing that its sockets deliver, and at most `limit` at a time.

    What exceeds the limit waits in the kernel's queue, which pushes back on its senders.
    """

    __slots__ = ("_active", "_limit", "_listening", "_name", "_sources", "_tasks")

    def __init__(self, tasks: asyncio.TaskGroup, *, limit: int, name: str) -> None:
        """Work runs in `tasks`, which the caller keeps open until after `drain`."""
        self._tasks = tasks
        self._limit = limit
        self._name = name
        self._sources: list[tuple[socket.socket, Take]] = []
        self._active: set[asyncio.Task[None]] = set()
        self._listening = False

    def add(self, source: socket.socket, take: Take) -> None:
        """Own `source` from now on. `take` raises ``BlockingIOError`` when it has nothing."""
        self._sources.append((source, take))

    def start(self) -> None:
        """Watch the sockets."""
        if self._sources and not self._listening:
            self._listening = True
            loop = asyncio.get_running_loop()
            for source, take in self._sources:
                # By number: for an object, the selector formats its repr into an error first.
                loop.add_reader(source.fileno(), self._readable, source, take)

    def close(self) -> None:
        """Take what is queued already, then close the sockets."""
        for source, take in self._sources:
            if self._listening:
                self._readable(source, take)
        self._stop()
        for source, _ in self._sources:
            source.close()
        self._sources.clear()

    async def drain(self, timeout: float) -> None:  # noqa: ASYNC109 - a grace period: no error
        """Wait up to `timeout` seconds for the work at hand, then cancel the rest."""
        if self._active:
            await asyncio.wait(self._active, timeout=timeout)
        for task in self._active:
            task.cancel()
        if self._active:
            await asyncio.wait(self._active)

    def _stop(self) -> None:
        if self._listening:
            self._listening = False
            loop = asyncio.get_running_loop()
            for source, _ in self._sources:
                loop.remove_reader(source.fileno())

    def _readable(self, source: socket.socket, take: Take) -> None:
        for _ in range(_PER_WAKEUP):
            if len(self._active) >= self._limit:
                self._stop()
                return
            try:
                work = take(source)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno not in _TRANSIENT:
                    log.warning("cannot take a connection", workload=self._name, error=str(error))
                    self._stop()
                    asyncio.get_running_loop().call_later(_PAUSE, self.start)
                    return
            else:
                task = self._tasks.create_task(work, name=self._name)
                self._active.add(task)
                task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._active.discard(task)
        self.start()
