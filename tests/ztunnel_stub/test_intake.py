"""How much work a workload takes at once."""

import asyncio
import socket

from tests.ztunnel_stub.harness import eventually
from ztunnel_stub.intake import Intake, Work


def listen(directory: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{directory}/listener")
    listener.listen()
    listener.setblocking(False)
    return listener


def connect(listener: socket.socket, data: bytes) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.connect(listener.getsockname())
    client.sendall(data)
    return client


async def test_what_exceeds_the_bound_waits_for_its_turn(directory: str) -> None:
    """The kernel keeps the next connection until one that was taken has ended."""
    listener = listen(directory)
    taken: list[bytes] = []
    turns = asyncio.Semaphore(0)

    def take(source: socket.socket) -> Work:
        return work(source.accept()[0])

    async def work(client: socket.socket) -> None:
        with client:
            taken.append(client.recv(1))
            await turns.acquire()

    async with asyncio.TaskGroup() as tasks:
        intake = Intake(tasks, limit=2, name="test")
        intake.add(listener, take)
        intake.start()
        clients = [connect(listener, data) for data in (b"1", b"2", b"3", b"4")]
        await eventually(lambda: taken == [b"1", b"2"])
        turns.release()
        await eventually(lambda: taken == [b"1", b"2", b"3"])
        turns.release()
        await eventually(lambda: taken == [b"1", b"2", b"3", b"4"])
        intake.close()
        await intake.drain(0)
        for client in clients:
            client.close()


async def test_what_was_queued_is_taken_before_the_listener_closes(directory: str) -> None:
    """A connection that the kernel has accepted is served, not reset."""
    listener = listen(directory)
    served: list[bytes] = []

    def take(source: socket.socket) -> Work:
        return work(source.accept()[0])

    async def work(client: socket.socket) -> None:
        with client:
            served.append(client.recv(100))

    async with asyncio.TaskGroup() as tasks:
        intake = Intake(tasks, limit=10, name="test")
        intake.add(listener, take)
        intake.start()
        with connect(listener, b"here"):
            intake.close()
            await intake.drain(5)
    assert served == [b"here"]
