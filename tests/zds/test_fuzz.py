"""What a peer that is no ztunnel sends: only the room's own exceptions, in bounded time."""

import asyncio
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from nodeagent.mesh.errors import RefusedError
from tests.eventually import PATIENCE
from tests.virtual_time import run_virtually
from tests.zds.conftest import a_pod, serving
from tests.zds.model import HELLO, ModelZtunnel, Mood, new_netns
from tests.zds.packets import PACKETS


@pytest.mark.fuzz
@settings(deadline=None)
@given(
    hello=st.one_of(st.just(HELLO), PACKETS),
    unasked=st.lists(PACKETS, max_size=3),
    answers=st.lists(st.lists(PACKETS, max_size=3), max_size=6),
)
def test_any_peer(hello: bytes, unasked: list[bytes], answers: list[list[bytes]]) -> None:
    """Whatever it says, and when: others are served, and nothing is a fault of ours."""
    with capture_logs() as logs, tempfile.TemporaryDirectory() as directory:
        run_virtually(meet(Path(directory), hello, unasked, answers))
    assert not [line for line in logs if line["log_level"] == "error"]


async def meet(
    directory: Path, hello: bytes, unasked: list[bytes], answers: list[list[bytes]]
) -> None:
    faults: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, fault: faults.append(fault))
    with new_netns() as held, new_netns() as other:
        async with serving(directory) as served:
            offers: list[asyncio.Task[Any]] = []

            def offer(uid: str) -> None:
                netns = held if uid == "1" else other
                offers.append(asyncio.create_task(served.agent.offer(a_pod(uid), netns)))

            offer("1")
            stranger = served.connect(hello=hello or None)
            stranger.mood = Mood.SILENT
            to_say = iter(answers)

            def say(_kind: str, _uid: str) -> None:
                for packet in next(to_say, []):
                    _send(stranger, packet)

            stranger.on_request = say
            for packet in unasked:
                _send(stranger, packet)
            offer("2")
            ztunnel = served.connect()
            while not await ztunnel.snapshot_came():
                ztunnel = served.connect()
            async with asyncio.timeout(PATIENCE):
                done = await asyncio.gather(*offers, return_exceptions=True)
            assert all(isinstance(each, bool | RefusedError) for each in done)
            assert set(ztunnel.workloads) == {"1", "2"}
    assert not faults


def _send(ztunnel: ModelZtunnel, packet: bytes) -> None:
    if not ztunnel.ended:
        ztunnel.answer(packet)
