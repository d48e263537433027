"""A node agent's side of ZDS, as small as the tests need it."""

import asyncio
import contextlib
import os
import socket
from collections.abc import Sequence
from typing import Self

from nodeagent.zds import zds_pb2
from tests.eventually import PATIENCE


class Agent:
    """Listens where the stub connects."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        self._socket.bind(path)
        self._socket.listen()

    async def accept(self) -> "Session":
        """The stub's next connection, before its hello."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(PATIENCE):
            connection, _ = await loop.sock_accept(self._socket)
        return Session(connection)

    async def session(self) -> "Session":
        """The stub's next connection, after a proper hello."""
        session = await self.accept()
        assert await session.receive() == zds_pb2.ZdsHello(version=zds_pb2.V1).SerializeToString()
        return session

    def close(self) -> None:
        """Be gone, for good."""
        self._socket.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)


class Session:
    """One connection of the stub."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection

    async def receive(self) -> bytes:
        """The next packet; empty at the end."""
        async with asyncio.timeout(PATIENCE):
            return await asyncio.get_running_loop().sock_recv(self._socket, 1 << 16)

    async def answer(self) -> str:
        """The error in the next Ack; empty on success."""
        data = await self.receive()
        assert data, "the stub closed the connection"
        response = zds_pb2.WorkloadResponse.FromString(data)
        assert response.HasField("ack")
        return response.ack.error

    async def ended(self) -> bool:
        """Whether the stub has closed the connection, without another word."""
        try:
            return await self.receive() == b""
        except ConnectionResetError:
            return True

    def send(self, data: bytes, descriptors: Sequence[int] = ()) -> None:
        socket.send_fds(self._socket, [data], descriptors)

    async def ask(self, request: zds_pb2.WorkloadRequest, *descriptors: int) -> str:
        """Send `request`; the error in its answer."""
        self.send(request.SerializeToString(), descriptors)
        return await self.answer()

    async def ask_raw(self, data: bytes) -> bytes:
        """Send `data`; the packet that answers it."""
        self.send(data)
        return await self.receive()

    async def add(self, uid: str, namespace: int, name: str = "web") -> str:
        return await self.ask(add(uid, name), namespace)

    async def delete(self, uid: str) -> str:
        return await self.ask(delete(uid))

    async def keep(self, uid: str) -> str:
        return await self.ask(zds_pb2.WorkloadRequest(keep=zds_pb2.KeepWorkload(uid=uid)))

    async def snapshot_sent(self) -> str:
        return await self.ask(zds_pb2.WorkloadRequest(snapshot_sent=zds_pb2.SnapshotSent()))

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def add(uid: str, name: str = "web") -> zds_pb2.WorkloadRequest:
    info = zds_pb2.WorkloadInfo(name=name, namespace="shop", service_account="clerk")
    return zds_pb2.WorkloadRequest(add=zds_pb2.AddWorkload(uid=uid, workload_info=info))


def delete(uid: str) -> zds_pb2.WorkloadRequest:
    request = zds_pb2.WorkloadRequest()
    getattr(request, "del").uid = uid
    return request
