"""One ztunnel's connection from its hello to its end."""

import asyncio
from typing import TYPE_CHECKING

import structlog

from nodeagent.mesh.pod import PodUID
from nodeagent.zds import codec
from nodeagent.zds.connection import Connection

if TYPE_CHECKING:  # the book knows its sessions, a session its book
    from nodeagent.zds.book import Book

log = structlog.get_logger()


class Session:
    """Brings one ztunnel up to date with the book, and keeps it so.

    Before the snapshot's end ztunnel takes a DelWorkload for a protocol error,
    and after it a KeepWorkload; so what changes meanwhile is told afterwards.
    """

    def __init__(self, connection: Connection, book: "Book", name: str) -> None:
        """`connection` stays the caller's; `name` is for the logs."""
        self._connection = connection
        self._book = book
        self._log = log.bind(ztunnel=name)
        self._told: set[PodUID] = set()
        self._accepted: dict[PodUID, int] = {}
        self._to_look_at: dict[PodUID, None] = {}
        self._forgetting: dict[PodUID, asyncio.Future[None]] = {}
        self.greeted = False
        """Whether the peer has shown itself to be a ztunnel."""

    async def run(self) -> None:
        """Serve until the connection ends.

        Raises ``ProtocolError``, ``DisconnectedError``.
        """
        codec.check_hello(await self._connection.receive())
        self.greeted = True
        self._log.info("ztunnel connected")
        self._book.join(self)
        try:
            await self._snapshot()
            while True:
                await self._next_change()
        finally:
            self._book.leave(self)
            for forgotten in self._forgetting.values():
                forgotten.set_result(None)

    def look_at(self, uid: PodUID) -> None:
        """The book has changed for `uid`."""
        self._to_look_at[uid] = None
        self._connection.stirred.set()

    def knows(self, uid: PodUID) -> bool:
        """Whether this ztunnel was ever told of `uid` and not yet of its end."""
        return uid in self._told

    def forget(self, uid: PodUID) -> "asyncio.Future[None]":
        """Tell this ztunnel that `uid` is gone from the book. Done when it was told, or is gone."""
        if uid not in self._forgetting:
            self._forgetting[uid] = asyncio.get_running_loop().create_future()
        self.look_at(uid)
        return self._forgetting[uid]

    async def _snapshot(self) -> None:
        # Again and again: what comes during the snapshot has to be in it, too (L31).
        while unnamed := [uid for uid in self._book if uid not in self._told]:
            for uid in unnamed:
                if self._book.get(uid) is not None:
                    await self._add(uid)
                elif uid in self._book:
                    await self._keep(uid)
        await self._ask(codec.snapshot_sent())
        self._log.info("ztunnel is up to date", workloads=len(self._told))

    async def _next_change(self) -> None:
        while not self._to_look_at:
            self._connection.check_quiet()
            self._connection.stirred.clear()
            await self._connection.stirred.wait()
        uid = next(iter(self._to_look_at))
        del self._to_look_at[uid]
        offer = self._book.get(uid)
        if offer is None:
            if uid in self._forgetting:
                await self._del(uid)
        elif self._accepted.get(uid) == offer.serial:
            # A newer ztunnel may have refused it before it went away.
            self._book.answered(uid, offer.serial, "")
        elif self._book.is_newest(self):
            await self._add(uid)
        if uid in self._forgetting and uid not in self._to_look_at:
            self._forgetting.pop(uid).set_result(None)

    async def _add(self, uid: PodUID) -> None:
        offer = self._book.get(uid)
        if offer is None:
            return
        self._told.add(uid)
        error = await self._ask(offer.packet, offer.namespace.fd)
        if not error:
            self._accepted[uid] = offer.serial
        self._book.answered(uid, offer.serial, error)

    async def _keep(self, uid: PodUID) -> None:
        self._told.add(uid)
        await self._ask(codec.keep_workload(uid))

    async def _del(self, uid: PodUID) -> None:
        if uid not in self._told:
            return
        self._accepted.pop(uid, None)
        error = await self._ask(codec.del_workload(uid))
        self._told.discard(uid)
        if error:
            self._log.warning("ztunnel did not let go of a workload", uid=uid, error=error)

    async def _ask(self, packet: bytes, descriptor: int | None = None) -> str:
        return codec.answer(await self._connection.ask(packet, descriptor))
