"""L11 to L14: after every history a well-behaved ztunnel has exactly the enrolled pods."""

import asyncio
import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodeagent.mesh.errors import RefusedError
from nodeagent.mesh.pod import PodUID
from nodeagent.netns.netns import Netns
from tests.eventually import PATIENCE
from tests.virtual_time import run_virtually
from tests.zds.conftest import Served, a_pod, serving
from tests.zds.model import ModelZtunnel, Mood, new_netns

pytestmark = pytest.mark.virtual_time

UIDS = st.sampled_from("abcd")
STEPS = st.one_of(
    st.tuples(st.just("offer"), UIDS, st.integers(0, 2)),
    st.tuples(st.just("keep"), UIDS),
    st.tuples(st.just("withdraw"), UIDS),
    st.tuples(st.just("connect")),
    st.tuples(st.just("disconnect"), st.integers(0, 3)),
    st.tuples(st.just("mood"), st.integers(0, 3), st.sampled_from(Mood)),
    st.tuples(st.just("turn"), st.integers(1, 30)),
)


@pytest.fixture(scope="module")
def netns() -> Iterator[list[Netns]]:
    made = [new_netns() for _ in range(3)]
    yield made
    for one in made:
        one.close()


class History:
    """Does the steps as the heart would: one worker per pod, the newest wish wins."""

    def __init__(self, served: Served, netns: list[Netns]) -> None:
        self.served = served
        self.netns = netns
        self.wanted: dict[str, Netns] = {}
        self.work: dict[str, asyncio.Task[None]] = {}

    def offer(self, uid: str, n: int) -> None:
        self.wanted[uid] = self.netns[n]
        self._start(uid)

    def keep(self, uid: str) -> None:
        self.served.kept.add(PodUID(uid))

    def withdraw(self, uid: str) -> None:
        self.wanted.pop(uid, None)
        self.served.kept.discard(PodUID(uid))
        self._start(uid)

    def connect(self) -> None:
        self.served.connect()

    def disconnect(self, n: int) -> None:
        if ztunnel := self._ztunnel(n):
            ztunnel.close()

    def mood(self, n: int, mood: Mood) -> None:
        if ztunnel := self._ztunnel(n):
            ztunnel.mood = mood

    def _ztunnel(self, n: int) -> ModelZtunnel | None:
        live = [ztunnel for ztunnel in self.served.ztunnels if not ztunnel.ended]
        return live[n % len(live)] if live else None

    def _start(self, uid: str) -> None:
        before = self.work.get(uid)
        self.work[uid] = asyncio.create_task(self._reconcile(uid, before))

    async def _reconcile(self, uid: str, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await before
        if uid in self.wanted:
            with contextlib.suppress(RefusedError):
                await self.served.agent.offer(a_pod(uid), self.wanted[uid])
        else:
            await self.served.agent.withdraw(PodUID(uid))


async def play(directory: str, steps: list[tuple[Any, ...]], netns: list[Netns]) -> None:
    async with serving(Path(directory)) as served:
        history = History(served, netns)
        for kind, *arguments in steps:
            if kind == "turn":
                for _ in range(*arguments):
                    await asyncio.sleep(0)
            else:
                getattr(history, kind)(*arguments)
        for ztunnel in served.ztunnels:
            ztunnel.mood = Mood.WILLING
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*history.work.values())
        well_behaved = await served.connected()
        expected = {uid: wanted.id for uid, wanted in history.wanted.items()}
        assert well_behaved.workloads == expected
        for uid, wanted in history.wanted.items():
            assert await served.agent.offer(a_pod(uid), wanted)
        history.served.kept.clear()
        for uid in "abcd":
            await served.agent.withdraw(PodUID(uid))
        assert well_behaved.workloads == {}
        assert list(served.agent.desired) == []
        for ztunnel in served.ztunnels:
            if not ztunnel.ended:
                assert ztunnel.workloads == {}, "a delete did not reach every ztunnel"


@settings(max_examples=120, deadline=None)
@given(steps=st.lists(STEPS, max_size=25))
def test_any_history(steps: list[tuple[Any, ...]], netns: list[Netns]) -> None:
    """L11, L12, L13, L14: whatever comes in whatever order, nothing is lost, leaked or stuck."""
    before = sorted(os.listdir("/proc/self/fd"))
    with tempfile.TemporaryDirectory() as directory:
        run_virtually(play(directory, steps, netns))
    assert sorted(os.listdir("/proc/self/fd")) == before
