"""The least of a ztunnel that shows where a redirected packet went."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from ipaddress import ip_address

from tests.eventually import PATIENCE
from tests.lab.apps import IPAddress, family_of
from tests.lab.pod import Pod

MARK = 0x539
_SO_ORIGINAL_DST = 80  # and IP6T_SO_ORIGINAL_DST
_IP_TRANSPARENT = 19
_IPV6_TRANSPARENT = 75

_Serve = Callable[
    [asyncio.StreamReader, asyncio.StreamWriter, tuple[IPAddress, int]], Awaitable[None]
]


@dataclass
class StandIn:
    """What arrived at one of ztunnel's ports."""

    destinations: list[tuple[IPAddress, int]] = field(default_factory=list)
    """The original destination of each connection."""


@contextlib.asynccontextmanager
async def answering(pod: Pod, version: int, port: int) -> AsyncIterator[StandIn]:
    """Answer connections to `port` as `echo_app` does, as ``ztunnel PORT``."""

    async def answer(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _: tuple[IPAddress, int]
    ) -> None:
        host, number = writer.get_extra_info("peername")[:2]
        writer.write(f"ztunnel:{port} {host} {number}\n".encode())
        writer.write(await reader.readuntil())

    async with _listening(pod, version, port, answer) as stand_in:
        yield stand_in


@contextlib.asynccontextmanager
async def passing_through(pod: Pod, version: int, port: int) -> AsyncIterator[StandIn]:
    """Pass connections on to their destination, from the client's own address, as 15006 does."""

    async def splice(
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        destination: tuple[IPAddress, int],
    ) -> None:
        onward = _transparent(pod, version, writer.get_extra_info("peername")[0])
        await asyncio.get_running_loop().sock_connect(onward, (str(destination[0]), destination[1]))
        app_reader, app_writer = await asyncio.open_connection(sock=onward)
        writer.write(await app_reader.readuntil())
        app_writer.write(await reader.readuntil())
        writer.write(await app_reader.readuntil())
        app_writer.close()
        await app_writer.wait_closed()

    async with _listening(pod, version, port, splice) as stand_in:
        yield stand_in


@contextlib.asynccontextmanager
async def udp_server(
    pod: Pod, address: IPAddress, port: int, *, name: str, mark: int | None = None
) -> AsyncIterator[None]:
    """Answer every datagram with `name`."""
    loop = asyncio.get_running_loop()
    with pod.socket(family_of(address), socket.SOCK_DGRAM, mark=mark) as sock:
        sock.bind((str(address), port))

        async def answer() -> None:
            while True:
                _, peer = await loop.sock_recvfrom(sock, 512)
                await loop.sock_sendto(sock, name.encode(), peer)

        task = asyncio.create_task(answer(), name=f"{name} server")
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def udp_ask(
    pod: Pod,
    address: IPAddress,
    port: int,
    *,
    source: IPAddress | None = None,
    source_port: int = 0,
    mark: int | None = None,
) -> str:
    """Ask again every second, as a resolver does, and return the answer. Raises ``TimeoutError``.

    A datagram is lost where the kernel is still looking for the neighbor, for one.
    """
    loop = asyncio.get_running_loop()
    with pod.socket(family_of(address), socket.SOCK_DGRAM, mark=mark) as sock:
        anywhere = "::" if address.version == 6 else "0.0.0.0"
        sock.bind((str(source or anywhere), source_port))
        sock.connect((str(address), port))
        async with asyncio.timeout(PATIENCE):
            while True:
                await loop.sock_sendall(sock, b"query")
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(1):
                        return (await loop.sock_recv(sock, 512)).decode()


@contextlib.asynccontextmanager
async def _listening(pod: Pod, version: int, port: int, serve: _Serve) -> AsyncIterator[StandIn]:
    stand_in = StandIn()

    serving: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if task := asyncio.current_task():
            serving[task] = writer
            task.add_done_callback(serving.pop)
        destination = _original_destination(writer.get_extra_info("socket"), version)
        stand_in.destinations.append(destination)
        # The client notices whatever goes wrong here.
        with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
            async with asyncio.timeout(PATIENCE):
                await serve(reader, writer, destination)
        writer.close()

    wildcard = ip_address("0.0.0.0" if version == 4 else "::")
    sock = pod.socket(family_of(wildcard), mark=MARK)
    sock.bind((str(wildcard), port))
    server = await asyncio.start_server(accepted, sock=sock)
    try:
        yield stand_in
    finally:
        server.close()
        for writer in serving.values():
            writer.close()
        await asyncio.gather(*serving)


def _transparent(pod: Pod, version: int, source: str) -> socket.socket:
    address = ip_address(source)
    sock = pod.socket(family_of(address), mark=MARK)
    if version == 4:
        sock.setsockopt(socket.SOL_IP, _IP_TRANSPARENT, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_TRANSPARENT, 1)
    sock.bind((source, 0))
    return sock


def _original_destination(sock: socket.socket, version: int) -> tuple[IPAddress, int]:
    if version == 4:
        data = sock.getsockopt(socket.SOL_IP, _SO_ORIGINAL_DST, 16)
        port, host = struct.unpack_from("!2xH4s", data)
    else:
        data = sock.getsockopt(socket.IPPROTO_IPV6, _SO_ORIGINAL_DST, 28)
        port, host = struct.unpack_from("!2xH4x16s", data)
    return ip_address(host), port
