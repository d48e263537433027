"""One connected socket of type SOCK_SEQPACKET: one message is one packet, in order.

A request is sent, and then its answer is waited for, with a deadline. Packets that the peer
sends are read as they come, but no more than two: a peer that floods ends its own
connection and costs no memory.
"""

import asyncio
import socket
import struct
from collections import deque
from dataclasses import dataclass
from typing import Self

from nodeagent.zds.codec import PACKET_LIMIT, ProtocolError


class DisconnectedError(Exception):
    """The peer has gone, or is treated as if it had."""


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end, as the kernel says (SO_PEERCRED)."""

    pid: int
    uid: int
    gid: int

    @classmethod
    def of(cls, connected: socket.socket) -> Self:
        """Ask the kernel. Raises ``OSError``."""
        credentials = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        return cls(*struct.unpack("=iII", credentials))


class Connection:
    """Owns a connected socket until `close`. One task sends requests, and waits on `wakeup`."""

    def __init__(self, connected: socket.socket, *, answer_timeout: float) -> None:
        """Take over `connected`; `answer_timeout` is in seconds."""
        connected.setblocking(False)
        self._socket = connected
        self._answer_timeout = answer_timeout
        self._loop = asyncio.get_running_loop()
        self._packets: deque[bytes] = deque()
        self.wakeup = asyncio.Event()
        """Set when the peer has sent something or gone, and by whoever has work for the task."""
        self._loop.add_reader(connected.fileno(), self._readable)

    async def ask(self, packet: bytes, descriptor: int | None = None) -> bytes:
        """Send one request and return its answer.

        `descriptor` is attached; it is used only while this sends. Raises ``ProtocolError``
        if the peer had spoken without being asked, ``DisconnectedError`` if it has gone or
        misses the deadline: answers have no number, so a late one would be taken for the
        answer to the next request.
        """
        self.check_quiet()
        self._send(packet, descriptor)
        return await self.receive()

    async def receive(self) -> bytes:
        """Wait for one packet. Raises like `ask`."""
        try:
            async with asyncio.timeout(self._answer_timeout):
                while not self._packets:
                    self.wakeup.clear()
                    await self.wakeup.wait()
        except TimeoutError:
            raise DisconnectedError(f"said nothing for {self._answer_timeout:g} s") from None
        packet = self._packets.popleft()
        self._check(packet)
        return packet

    def check_quiet(self) -> None:
        """Raise if the peer has gone or has spoken without having been asked."""
        if self._packets:
            self._check(self._packets[0])
            raise ProtocolError("it spoke without having been asked")

    def close(self) -> None:
        """End the connection. Idempotent."""
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()

    def _send(self, packet: bytes, descriptor: int | None) -> None:
        attached = [] if descriptor is None else [_rights(descriptor)]
        try:
            self._socket.sendmsg([packet], attached)
        except OSError as error:
            # One request is under way at a time, so a full buffer (EAGAIN) means
            # a peer that has stopped reading answered packets: no ztunnel does.
            raise DisconnectedError(f"cannot be sent to: {error.strerror}") from error

    def _readable(self) -> None:
        try:
            # One byte more than allowed, so that too long a packet shows itself.
            # Without room for control data the kernel drops what may be attached.
            packet = self._socket.recv(PACKET_LIMIT + 1)
        except BlockingIOError:
            return
        except OSError:
            packet = b""
        self._packets.append(packet)
        if not packet or len(self._packets) > 1:
            self._loop.remove_reader(self._socket.fileno())
        self.wakeup.set()

    @staticmethod
    def _check(packet: bytes) -> None:
        # No ZDS message of ztunnel's is empty: an empty read is the end of the stream.
        if not packet:
            raise DisconnectedError("has gone")
        if len(packet) > PACKET_LIMIT:
            raise ProtocolError(f"it sent a packet of more than {PACKET_LIMIT} bytes")


def _rights(descriptor: int) -> tuple[int, int, bytes]:
    return socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("=i", descriptor)
