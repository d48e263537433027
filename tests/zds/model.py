"""A ztunnel reduced to what the protocol fixes, and strict about it."""

import asyncio
import os
import socket
import struct
import threading
from collections.abc import Callable
from enum import Enum

from nodeagent.linux import syscalls as kernel
from nodeagent.netns.netns import Netns, NetnsId
from nodeagent.zds import zds_pb2 as pb
from tests.eventually import PATIENCE

HELLO = pb.ZdsHello(version=pb.V1).SerializeToString()
OK = pb.WorkloadResponse(ack=pb.Ack()).SerializeToString()


def refusal(text: str) -> bytes:
    return pb.WorkloadResponse(ack=pb.Ack(error=text)).SerializeToString()


def new_netns() -> Netns:
    """A network namespace that nobody is in; it lives as long as its descriptor."""
    made: list[Netns] = []

    def make() -> None:
        kernel.unshare(kernel.CLONE_NEWNET)
        made.append(Netns.current())

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    return made[0]


class Mood(Enum):
    """How the model answers adds."""

    WILLING = "acknowledges"
    REFUSING = "answers with an error"
    SILENT = "does not answer"


class ModelZtunnel:
    """Connects, greets, and records; every breach of the protocol by the agent is kept."""

    def __init__(self, path: str, *, hello: bytes | None = HELLO) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self.socket.connect(path)
        except OSError:
            self.socket.close()
            raise
        self.socket.setblocking(False)
        self.mood = Mood.WILLING
        self.workloads: dict[str, NetnsId] = {}
        self.named: set[str] = set()
        self.requests: list[tuple[str, str]] = []
        self.snapshot = False
        self.ended = False
        self.breaches: list[str] = []
        self.wakeup = asyncio.Event()
        self.on_request: Callable[[str, str], None] = lambda _kind, _uid: None
        asyncio.get_running_loop().add_reader(self.socket, self._readable)
        if hello is not None:
            self.socket.send(hello)

    def close(self) -> None:
        if self.socket.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self.socket)
            self.socket.close()
        self.ended = True
        self.wakeup.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not condition():
                self.wakeup.clear()
                await self.wakeup.wait()

    async def snapshot_came(self) -> bool:
        await self.until(lambda: self.snapshot or self.ended)
        return self.snapshot

    async def up_to_date(self) -> None:
        assert await self.snapshot_came(), "the agent closed the connection"

    def _readable(self) -> None:
        try:
            packet, control, flags, _ = self.socket.recvmsg(1024, 1024)
        except OSError:
            packet, control, flags = b"", [], 0
        descriptors = [
            fd for _, _, data in control for fd in struct.unpack(f"={len(data) // 4}i", data)
        ]
        try:
            if not packet:
                self.close()
                return
            if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                self.breaches.append("truncated")
            self._take(pb.WorkloadRequest.FromString(packet), descriptors)
        finally:
            for fd in descriptors:
                os.close(fd)
        self.wakeup.set()

    def _take(self, request: pb.WorkloadRequest, descriptors: list[int]) -> None:
        kind = request.WhichOneof("payload") or "nothing"
        uid = getattr(getattr(request, kind), "uid", "")
        self.requests.append((kind, uid))
        if len(descriptors) != (kind == "add"):
            self.breaches.append(f"{kind} with {len(descriptors)} descriptors")
        if self.snapshot != (kind == "del") and kind != "add":
            self.breaches.append(f"{kind} {'after' if self.snapshot else 'before'} the snapshot")
        self.on_request(kind, uid)
        if self.mood is Mood.SILENT:
            return
        if kind == "add" and self.mood is Mood.REFUSING:
            self.named.add(uid)
            self.answer(refusal("cannot bind"))
            return
        match kind:
            case "add":
                self.named.add(uid)
                self.workloads[uid] = NetnsId.of_fd(descriptors[0])
            case "keep":
                self.named.add(uid)
            case "del":
                self.workloads.pop(uid, None)
            case "snapshot_sent":
                self.snapshot = True
        self.answer(OK)

    def answer(self, packet: bytes) -> None:
        try:
            self.socket.send(packet)
        except OSError:
            self.close()
