"""The applications at the two ends of a connection, and what lies between them."""

import asyncio
import socket
from dataclasses import dataclass

from tests.eventually import PATIENCE
from tests.ztunnel_stub.conftest import PodFactory
from tests.ztunnel_stub.pods import Pod, join
from tests.ztunnel_stub.rules import REDIRECTION, ROUTES

PORT = 8080
V4 = socket.AF_INET
V6 = socket.AF_INET6
Family = socket.AddressFamily


@dataclass(frozen=True)
class Cable:
    """A redirected pod, and a neighbor that is not redirected."""

    pod: Pod
    neighbor: Pod


def lay_cable(make_pod: PodFactory) -> Cable:
    """Pod and neighbor have the addresses that end in 1 and 2."""
    pod, neighbor = make_pod(), make_pod()
    join(pod, neighbor)
    pod.shell(*ROUTES)
    pod.load(REDIRECTION)
    return Cable(pod, neighbor)


def address(number: int, family: Family) -> str:
    return f"10.77.0.{number}" if family == V4 else f"fd77::{number}"


def shown(host: str, port: int) -> str:
    """As the log shows it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def name(sock: socket.socket) -> str:
    """A socket's own address, as the log shows it."""
    return shown(*sock.getsockname()[:2])


def open_socket(
    pod: Pod, family: Family, kind: socket.SocketKind = socket.SOCK_STREAM
) -> socket.socket:
    opened = pod.call(socket.socket, family, kind)
    opened.setblocking(False)
    return opened


def listen(pod: Pod, family: Family) -> socket.socket:
    """An app in `pod`, on every address."""
    server = open_socket(pod, family)
    server.bind(("", PORT))
    server.listen()
    return server


async def connect(pod: Pod, host: str, port: int = PORT) -> socket.socket:
    """A client in `pod`."""
    client = open_socket(pod, V6 if ":" in host else V4)
    try:
        async with asyncio.timeout(PATIENCE):
            await asyncio.get_running_loop().sock_connect(client, (host, port))
    except BaseException:
        client.close()
        raise
    return client


async def accept(server: socket.socket) -> socket.socket:
    async with asyncio.timeout(PATIENCE):
        accepted, _ = await asyncio.get_running_loop().sock_accept(server)
        return accepted


async def send(sock: socket.socket, data: bytes) -> None:
    async with asyncio.timeout(PATIENCE):
        await asyncio.get_running_loop().sock_sendall(sock, data)


async def receive(sock: socket.socket, size: int = 1 << 16) -> bytes:
    async with asyncio.timeout(PATIENCE):
        return await asyncio.get_running_loop().sock_recv(sock, size)


async def exchange(client: socket.socket, server: socket.socket) -> None:
    """Four bytes there, six back."""
    await send(client, b"ping")
    assert await receive(server) == b"ping"
    await send(server, b"answer")
    assert await receive(client) == b"answer"
