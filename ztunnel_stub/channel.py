"""One connection to the agent's socket: packets with descriptors, recorded."""

import array
import asyncio
import socket
from dataclasses import dataclass
from typing import Self

from google.protobuf.message import Message

from nodeagent.zds import zds_pb2
from ztunnel_stub.codec import MAX_PACKET
from ztunnel_stub.record import Recorder

_MAX_DESCRIPTORS = 4
"""One is allowed; there is room for more so that too many can be told from truncation."""


@dataclass(frozen=True, slots=True)
class Packet:
    """What one ``recvmsg`` returned. Whoever takes it owns the descriptors."""

    data: bytes
    descriptors: list[int]
    flags: int


class Channel:
    """Owns the socket."""

    def __init__(self, path: str, recorder: Recorder) -> None:
        """Connect. Raises ``OSError``, also where the agent's queue of callers is full."""
        self._recorder = recorder
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        try:
            self._socket.connect(path)
        except OSError:
            self._socket.close()
            raise

    async def send(self, data: bytes, kind: type[Message] = zds_pb2.WorkloadResponse) -> None:
        """Send one packet, which should be a `kind`. Raises ``OSError``."""
        await asyncio.get_running_loop().sock_sendall(self._socket, data)
        self._recorder.sent(data, kind)

    async def receive(self) -> Packet | None:
        """Wait for a packet; None at the connection's end. Raises ``OSError``."""
        while True:
            try:
                data, ancillary, flags, _ = self._socket.recvmsg(
                    MAX_PACKET,
                    socket.CMSG_SPACE(_MAX_DESCRIPTORS * array.array("i").itemsize),
                    socket.MSG_CMSG_CLOEXEC,
                )
            except BlockingIOError:
                await self._readable()
                continue
            descriptors = _descriptors(ancillary)
            if not data and not descriptors:
                return None
            self._recorder.received(data, zds_pb2.WorkloadRequest, descriptors)
            return Packet(data, descriptors, flags)

    async def _readable(self) -> None:
        loop = asyncio.get_running_loop()
        readable = loop.create_future()

        def wake() -> None:
            if not readable.done():
                readable.set_result(None)

        loop.add_reader(self._socket.fileno(), wake)
        try:
            await readable
        finally:
            loop.remove_reader(self._socket.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    descriptors = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
    return descriptors.tolist()
