"""A ZDS server on a real socket, with real namespaces. Needs: the sandbox of tests/sandbox.py."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from nodeagent.mesh.pod import Pod, PodUID
from nodeagent.netns.namespace import NetworkNamespace
from nodeagent.sockets import listening
from nodeagent.zds.book import Book
from nodeagent.zds.server import ZdsServer
from tests.zds.model import ModelZtunnel, new_namespace

ANSWER_TIMEOUT = 0.25


@dataclass
class Served:
    """A running server, its book, and the news that it told."""

    path: str
    book: Book
    news: list[PodUID] = field(default_factory=list)
    kept: set[PodUID] = field(default_factory=set)
    """What a snapshot has to name, handed over or not."""
    ztunnels: list[ModelZtunnel] = field(default_factory=list)

    def connect(self, **options: bytes | None) -> ModelZtunnel:
        ztunnel = ModelZtunnel(self.path, **options)
        self.ztunnels.append(ztunnel)
        return ztunnel

    async def connected(self) -> ModelZtunnel:
        ztunnel = self.connect()
        await ztunnel.up_to_date()
        return ztunnel


@contextlib.asynccontextmanager
async def serving(
    directory: Path, *, peer_uids: frozenset[int] = frozenset({0})
) -> AsyncIterator[Served]:
    news: list[PodUID] = []
    kept: set[PodUID] = set()
    path = str(directory / "run" / "ztunnel.sock")
    served = Served(path, Book(news.append, lambda: kept), news, kept)
    server = ZdsServer(served.book, peer_uids=peer_uids, answer_timeout=ANSWER_TIMEOUT)
    with listening(path, socket.SOCK_SEQPACKET, setting="ZTUNNEL_UDS_ADDRESS") as listener:
        task = asyncio.create_task(server.serve(listener))
        try:
            yield served
        finally:
            for ztunnel in served.ztunnels:
                ztunnel.close()
                assert not ztunnel.breaches
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serving(tmp_path) as server:
        yield server


@pytest.fixture
def namespace() -> Iterator[Callable[[], NetworkNamespace]]:
    made: list[NetworkNamespace] = []

    def make() -> NetworkNamespace:
        made.append(new_namespace())
        return made[-1]

    yield make
    for one in made:
        one.close()


def a_pod(uid: str) -> Pod:
    return Pod(uid=PodUID(uid), name=f"pod-{uid}", namespace="default")
