"""Apps in pods: a server that says whom it sees, and a client that asks."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address

from tests.eventually import PATIENCE
from tests.lab.pod import Pod

IPAddress = IPv4Address | IPv6Address


@dataclass
class App:
    """What one server has seen."""

    name: str
    port: int
    peers: list[tuple[str, int]] = field(default_factory=list)
    """Address and port of every client, as the server saw it."""


@contextlib.asynccontextmanager
async def echo_app(
    pod: Pod, address: IPAddress, port: int, *, name: str = "app"
) -> AsyncIterator[App]:
    """Listen on `address` in `pod`, for TCP.

    A client is told ``NAME ADDRESS PORT`` in the first line, its own address as
    the app sees it, and then gets back what it sends.
    """
    app = App(name, port)
    serving: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = writer.get_extra_info("peername")[:2]
        app.peers.append(peer)
        if task := asyncio.current_task():
            serving[task] = writer
            task.add_done_callback(serving.pop)
        writer.write(f"{name} {peer[0]} {peer[1]}\n".encode())
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    sock = pod.socket(family_of(address))
    sock.bind((str(address), port))
    server = await asyncio.start_server(serve, sock=sock)
    try:
        yield app
    finally:
        server.close()
        for writer in serving.values():
            writer.close()
        await asyncio.gather(*serving)


@dataclass
class Conversation:
    """One client's connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    greeting: tuple[str, ...]
    """The server's name, and the client's address and port as the server sees them."""

    async def echo(self, text: str) -> str:
        """Send a line and return what comes back."""
        async with asyncio.timeout(PATIENCE):
            self.writer.write(text.encode() + b"\n")
            return (await self.reader.readuntil()).decode().rstrip("\n")

    @property
    def name(self) -> str:
        """Who answered."""
        return self.greeting[0]

    @property
    def source(self) -> IPAddress:
        """The client's address, as the server sees it."""
        return ip_address(self.greeting[1])

    @property
    def local(self) -> tuple[str, int]:
        """The client's own address and port, as it sees them itself."""
        host, port = self.writer.get_extra_info("sockname")[:2]
        return host, port


@contextlib.asynccontextmanager
async def conversation(
    pod: Pod,
    address: IPAddress,
    port: int,
    *,
    mark: int | None = None,
    source: IPAddress | None = None,
) -> AsyncIterator[Conversation]:
    """Dial from inside `pod` and read the greeting. Raises ``OSError``, ``TimeoutError``."""
    sock = pod.socket(family_of(address), mark=mark)
    try:
        if source is not None:
            sock.bind((str(source), 0))
        async with asyncio.timeout(PATIENCE):
            await asyncio.get_running_loop().sock_connect(sock, (str(address), port))
            reader, writer = await asyncio.open_connection(sock=sock)
    except BaseException:
        sock.close()
        raise
    try:
        async with asyncio.timeout(PATIENCE):
            greeting = (await reader.readuntil()).decode().split()
        yield Conversation(reader, writer, tuple(greeting))
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def ask(
    pod: Pod,
    address: IPAddress,
    port: int,
    *,
    mark: int | None = None,
    source: IPAddress | None = None,
) -> tuple[str, ...]:
    """Dial, exchange a line, hang up; return the greeting: server's name, address and port."""
    async with conversation(pod, address, port, mark=mark, source=source) as talk:
        if await talk.echo("ping") != "ping":
            raise AssertionError("the echo is not what was sent")
        return talk.greeting


def family_of(address: IPAddress) -> socket.AddressFamily:
    """The socket family of `address`."""
    return socket.AF_INET if address.version == 4 else socket.AF_INET6
