"""Crowds of connections at every socket of a running agent. Needs: `ip`."""

import asyncio
import contextlib
import os
import socket
import subprocess
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from nodeagent.linux.fd_limit import raise_nofile_limit
from nodeagent.mesh.pod import REROUTE_VIRTUAL_INTERFACES
from tests.agent.processes import Node
from tests.agent.ztunnels import reconnected
from tests.eventually import PATIENCE, eventually
from tests.lab.lab import Lab
from tests.zds.model import ModelZtunnel

CROWD = 1500
"""More than select() can name."""
BEGUN = b"GET /readyz HTTP/1.1\r\nHost: "


@pytest.fixture
def port() -> int:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@pytest.fixture
async def served(tmp_path: Path, port: int) -> AsyncIterator[Node]:
    made = Node(tmp_path, readiness_address=f"127.0.0.1:{port}")
    yield made
    if made.process is not None:
        await made.kill()


def to_port(port: int) -> Callable[[], socket.socket]:
    return lambda: socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)


def to_path(path: str, kind: socket.SocketKind = socket.SOCK_STREAM) -> Callable[[], socket.socket]:
    def connect() -> socket.socket:
        client = socket.socket(socket.AF_UNIX, kind)
        client.connect(path)  # with a timeout it would not wait for room in the queue
        client.settimeout(PATIENCE)
        return client

    return connect


@contextlib.contextmanager
def crowd(connect: Callable[[], socket.socket], sent: bytes = b"") -> Iterator[None]:
    """Connect `CROWD` times, say `sent`, and stay."""
    raise_nofile_limit(2 * CROWD)
    with contextlib.ExitStack() as opened:
        for _ in range(CROWD):
            client = opened.enter_context(connect())
            with contextlib.suppress(OSError):  # it may have made room already
                client.send(sent)
        yield


def probe(port: int, path: str = "/readyz") -> str:
    with to_port(port)() as client:
        client.sendall(b"GET " + path.encode() + b" HTTP/1.1\r\nHost: a\r\n\r\n")
        with client.makefile("rb") as answer:
            return answer.readline().decode().strip()


async def test_crowds_at_every_socket(
    lab: Lab, served: Node, ztunnels: list[ModelZtunnel], port: int
) -> None:
    """L33: with 1,500 connections at each socket, probes are answered and pods enrolled.

    Each pod has rules such as no pod had before, for which libnftables is opened.
    """
    served.start()
    await reconnected(served, ztunnels)
    run = served.settings.cni_agent_run_dir
    for number, (connect, sent) in enumerate(
        [
            (to_port(port), b""),
            (to_port(port), BEGUN),
            (to_path(served.settings.admin_socket), b""),
            (to_path(served.settings.plugin_socket), b"POST /cni HTTP/1.1\r\n"),
            (to_path(os.path.join(run, "log.sock")), b""),
            (to_path(served.zds, socket.SOCK_SEQPACKET), b""),
        ]
    ):
        with await asyncio.to_thread(enter, crowd(connect, sent)):
            for path in ("/readyz", "/healthz"):
                assert await asyncio.to_thread(probe, port, path) == "HTTP/1.1 200 OK"
            pod = lab.add_pod(f"pod{number}")
            served.write(pod, annotations={REROUTE_VIRTUAL_INTERFACES: f"vm{number}"})
            await served.until_state(pod, "enrolled")
    assert await served.stop() == 0


async def test_probes_during_a_flood(served: Node, port: int) -> None:
    """L33: while others connect as fast as they can, every probe of kubelet's is answered."""
    served.start()
    await eventually(lambda: is_ready(port))
    over = threading.Event()

    def flood() -> None:
        kept: deque[socket.socket] = deque()
        while not over.is_set():
            with contextlib.suppress(OSError):
                kept.append(to_port(port)())
                kept[-1].send(BEGUN)
            if len(kept) > 200:
                kept.popleft().close()
        for client in kept:
            client.close()

    flooding = [asyncio.create_task(asyncio.to_thread(flood)) for _ in range(3)]
    try:
        for _ in range(100):
            assert await asyncio.to_thread(probe, port, "/healthz") == "HTTP/1.1 200 OK"
    finally:
        over.set()
        await asyncio.gather(*flooding)


def is_ready(port: int) -> bool:
    try:
        return probe(port).endswith("200 OK")
    except OSError:
        return False


async def test_annotation_of_250_kilobytes(
    lab: Lab, served: Node, ztunnels: list[ModelZtunnel]
) -> None:
    """L34: a pod with one that is changed again and again holds nobody up."""
    served.start()
    await reconnected(served, ztunnels)
    greedy, innocent = lab.add_pod("greedy"), lab.add_pod("innocent")
    for number in range(20):
        names = ",".join(f"v{number}-{n:05}" for n in range(25_000))
        served.write(greedy, annotations={REROUTE_VIRTUAL_INTERFACES: names})
    served.write(innocent)
    for pod in (greedy, innocent):
        await served.until_state(pod, "enrolled")
    assert "overrides" not in "".join(
        line for line in served.log.read_text().splitlines() if "holds up the event loop" in line
    )


def enter(block: contextlib.AbstractContextManager[None]) -> contextlib.ExitStack:
    with contextlib.ExitStack() as entered:
        entered.enter_context(block)
        return entered.pop_all()
    raise AssertionError
