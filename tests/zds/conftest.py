"""A ZDS server on a real socket, with real network namespaces (of tests/sandbox.py)."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from nodeagent.linux.unix_sockets import listening
from nodeagent.mesh.pod import Pod, PodUID
from nodeagent.mesh.reconciler import Reconciler
from nodeagent.netns.netns import Netns
from nodeagent.zds.server import ZdsServer
from nodeagent.zds.ztunnels import ConnectedZtunnels
from tests.zds.model import ModelZtunnel, new_netns

ANSWER_TIMEOUT = 0.25


@dataclass
class Served:
    """A running server, the agent's side of it, and the answers that it was called for."""

    path: str
    news: list[PodUID] = field(default_factory=list)
    kept: set[PodUID] = field(default_factory=set)
    """What a snapshot has to name, handed over or not."""
    ztunnels: list[ModelZtunnel] = field(default_factory=list)
    reconciler: Reconciler[Any] | None = None
    """The heart that hears the news, and says what is kept, if there is one."""

    def __post_init__(self) -> None:
        self.agent = ConnectedZtunnels(self._heard, self._list_kept)

    def _heard(self, uid: PodUID) -> None:
        self.news.append(uid)
        if self.reconciler is not None:
            self.reconciler.table.wake(uid)

    def _list_kept(self) -> Iterable[PodUID]:
        return self.kept if self.reconciler is None else self.reconciler.table.kept()

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
    path = str(directory / "run" / "ztunnel.sock")
    served = Served(path)
    server = ZdsServer(served.agent, peer_uids=peer_uids, answer_timeout=ANSWER_TIMEOUT)
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
def make_netns() -> Iterator[Callable[[], Netns]]:
    made: list[Netns] = []

    def make() -> Netns:
        made.append(new_netns())
        return made[-1]

    yield make
    for one in made:
        one.close()


def a_pod(uid: str) -> Pod:
    return Pod(uid=PodUID(uid), name=f"pod-{uid}", namespace="default")
