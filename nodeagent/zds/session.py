"""One ztunnel's connection from its hello to its end.

A session sends what its ztunnel lacks of `desired.py`, one request at a time: first as a
snapshot, then as things change. Before the snapshot's end ztunnel takes a DelWorkload for a
protocol error, and after it a KeepWorkload; so what is withdrawn during the snapshot is
sent after it.
"""

import asyncio
import time

import structlog

from nodeagent.mesh.pod import PodUID
from nodeagent.observer import NOBODY, Observer
from nodeagent.zds import codec
from nodeagent.zds.connection import Connection
from nodeagent.zds.desired import DesiredWorkload, DesiredWorkloads

log = structlog.get_logger()


class Session:
    """Brings one ztunnel up to date with what is desired, and keeps it so."""

    def __init__(
        self,
        connection: Connection,
        desired: DesiredWorkloads,
        name: str,
        observer: Observer = NOBODY,
    ) -> None:
        """`connection` stays the caller's; `name` is for the logs."""
        self._connection = connection
        self._observer = observer
        self._desired = desired
        self._log = log.bind(ztunnel=name)
        self._sent: set[PodUID] = set()
        """What this ztunnel has heard of, and not yet of its end."""
        self._accepted: dict[PodUID, DesiredWorkload] = {}
        self._to_compare: dict[PodUID, None] = {}
        """Where what is desired may differ from what was sent, in the order of the changes."""
        self._withdrawing: dict[PodUID, asyncio.Future[None]] = {}
        self.greeted = False
        """Whether the peer has shown itself to be a ztunnel."""
        self.is_newest = False
        """Whether this ztunnel is the one that gets new workloads. `ztunnels.py` sets it."""

    async def greet(self) -> None:
        """Wait for the hello. Raises ``ProtocolError``, ``DisconnectedError``."""
        codec.check_hello(await self._connection.receive())
        self.greeted = True
        self._log.info("ztunnel connected")

    async def run(self) -> None:
        """Serve until the connection ends. Raises ``ProtocolError``, ``DisconnectedError``."""
        try:
            await self._send_snapshot()
            while True:
                await self._send_next_change()
        finally:
            for done in self._withdrawing.values():
                done.set_result(None)

    def compare(self, uid: PodUID) -> None:
        """What is desired for `uid` has changed: send what differs, soon."""
        self._to_compare[uid] = None
        self._connection.wakeup.set()

    def has_sent(self, uid: PodUID) -> bool:
        """Whether this ztunnel has heard of `uid`, and not yet of its end."""
        return uid in self._sent

    def withdraw(self, uid: PodUID) -> asyncio.Future[None]:
        """Tell this ztunnel to drop `uid`. Done when ztunnel was asked to, or has gone."""
        if uid not in self._withdrawing:
            self._withdrawing[uid] = asyncio.get_running_loop().create_future()
        self.compare(uid)
        return self._withdrawing[uid]

    async def _send_snapshot(self) -> None:
        began = time.monotonic()
        # Again and again: what comes during the snapshot has to be in it, too.
        while missing := [uid for uid in self._desired if uid not in self._sent]:
            for uid in missing:
                if (workload := self._desired.get(uid)) is not None:
                    await self._add(uid, workload)
                elif uid in self._desired:
                    await self._keep(uid)
        await self._ask("snapshot_sent", codec.snapshot_sent())
        self._observer.snapshot_sent(len(self._sent), time.monotonic() - began)
        self._log.info("ztunnel is up to date", workloads=len(self._sent))

    async def _send_next_change(self) -> None:
        while not self._to_compare:
            self._connection.check_quiet()
            self._connection.wakeup.clear()
            await self._connection.wakeup.wait()
        uid = next(iter(self._to_compare))
        del self._to_compare[uid]
        workload = self._desired.get(uid)
        if workload is None:
            if uid in self._withdrawing:
                await self._delete(uid)
        elif self._accepted.get(uid) is workload:
            # A newer ztunnel may have refused it before it went away.
            workload.take_answer("")
        elif self.is_newest:
            await self._add(uid, workload)
        if uid in self._withdrawing and uid not in self._to_compare:
            self._withdrawing.pop(uid).set_result(None)

    async def _add(self, uid: PodUID, workload: DesiredWorkload) -> None:
        self._sent.add(uid)
        error = await self._ask("add", workload.packet, workload.netns.fd)
        if not error:
            self._accepted[uid] = workload
        workload.take_answer(error)

    async def _keep(self, uid: PodUID) -> None:
        self._sent.add(uid)
        await self._ask("keep", codec.keep_workload(uid))

    async def _delete(self, uid: PodUID) -> None:
        if uid not in self._sent:
            return
        self._accepted.pop(uid, None)
        error = await self._ask("del", codec.del_workload(uid))
        self._sent.discard(uid)
        if error:
            self._log.warning("ztunnel did not drop a workload", uid=uid, error=error)

    async def _ask(self, request: str, packet: bytes, descriptor: int | None = None) -> str:
        began, result = time.monotonic(), "unanswered"
        try:
            error = codec.answer(await self._connection.ask(packet, descriptor))
            result = "refused" if error else "accepted"
        finally:
            self._observer.ztunnel_answered(request, result, time.monotonic() - began)
        return error
