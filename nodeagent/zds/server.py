"""The socket at which ztunnels connect: who may, and how many.

Each connection is served in a task of its own, so that a ztunnel that hangs or a peer that
misbehaves delays nobody else.
"""

import asyncio
import itertools
import socket
from functools import partial

import structlog

from nodeagent.linux.unix_sockets import accepting
from nodeagent.observer import NOBODY, Observer
from nodeagent.zds.codec import ProtocolError
from nodeagent.zds.connection import Connection, DisconnectedError, Peer
from nodeagent.zds.session import Session
from nodeagent.zds.ztunnels import ConnectedZtunnels

log = structlog.get_logger()

ANSWER_TIMEOUT = 5.0
"""Seconds for a hello or an answer; the same that ztunnel's servers allow each other."""
MAX_SILENT = 16
"""Connections that have not said hello. Beyond that the oldest is closed, so that a flood of
them shuts no ztunnel out."""
MAX_ZTUNNELS = 8
"""A rolling update has two. Beyond that the oldest is closed."""


class ZdsServer:
    """Serves each ztunnel that connects, in a task of its own."""

    def __init__(
        self,
        ztunnels: ConnectedZtunnels,
        *,
        peer_uids: frozenset[int],
        answer_timeout: float = ANSWER_TIMEOUT,
        observer: Observer = NOBODY,
    ) -> None:
        """Peers must run as one of `peer_uids`; `answer_timeout` is in seconds."""
        self._ztunnels = ztunnels
        self._peer_uids = peer_uids
        self._answer_timeout = answer_timeout
        self._observer = observer
        self._serving: dict[asyncio.Task[None], Session] = {}
        self._numbers = itertools.count(1)

    async def serve(self, listener: socket.socket) -> None:
        """Accept from `listener` until cancelled."""
        async with asyncio.TaskGroup() as group:
            with accepting(listener, partial(self._admit, group), name="ZDS"):
                await asyncio.get_running_loop().create_future()

    def _admit(self, group: asyncio.TaskGroup, connected: socket.socket) -> None:
        try:
            peer = Peer.of(connected)
        except OSError:
            connected.close()
            return
        if peer.uid not in self._peer_uids:
            # Before a byte is sent: whoever has a pod's netns is as good as root in that pod.
            log.warning("refused a peer", pid=peer.pid, uid=peer.uid, allowed=[*self._peer_uids])
            connected.close()
            return
        self._close_oldest(greeted=False, limit=MAX_SILENT)
        self._close_oldest(greeted=True, limit=MAX_ZTUNNELS)
        connection = Connection(connected, answer_timeout=self._answer_timeout)
        # The kernel has no number for a process of another PID namespace, as in a container.
        name = f"pid {peer.pid}" if peer.pid else f"connection {next(self._numbers)}"
        session = Session(connection, self._ztunnels.desired, name, self._observer)
        task = group.create_task(self._serve(session, name), name=f"ztunnel, {name}")
        self._serving[task] = session
        task.add_done_callback(self._serving.pop)
        # Not in the task: one that is cancelled before its first step runs no `finally`.
        task.add_done_callback(lambda _: connection.close())

    def _close_oldest(self, *, greeted: bool, limit: int) -> None:
        tasks = [
            task
            for task, session in self._serving.items()
            if session.greeted is greeted and not task.cancelling()
        ]
        if len(tasks) >= limit:
            log.warning("too many connections, closed the oldest", greeted=greeted, limit=limit)
            tasks[0].cancel()

    async def _serve(self, session: Session, name: str) -> None:
        try:
            await self._ztunnels.serve(session)
        except DisconnectedError as error:
            # A peer that never said hello was no ztunnel: `nodeagent check` connects to see who
            # listens.
            tell = log.info if session.greeted else log.debug
            tell("ztunnel disconnected", ztunnel=name, reason=str(error))
        except ProtocolError as error:
            log.warning("disconnected a peer", ztunnel=name, reason=str(error))
        except Exception:
            # A fault of ours on one connection must not end the others'.
            log.exception("unexpected failure", ztunnel=name)
