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
from nodeagent.mesh.pod import Pod, PodUID
from nodeagent.zds import codec
from nodeagent.zds import zds_pb2 as pb
from nodeagent.zds.codec import PACKET_LIMIT, PacketTooLargeError, ProtocolError
from tests.eventually import PATIENCE
from tests.virtual_time import run_virtually
from tests.zds.conftest import a_pod, serving
from tests.zds.model import HELLO, OK, ModelZtunnel, Mood, new_netns

ANSWERS = st.builds(
    lambda error: pb.WorkloadResponse(ack=pb.Ack(error=error)).SerializeToString(),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=300),
)
PACKETS = st.one_of(
    st.binary(max_size=PACKET_LIMIT + 64),
    st.sampled_from([HELLO, OK, HELLO + OK, b"", b"\x08", b"\x12\x80\x80\x80\x80\x10"]),
    st.binary(min_size=PACKET_LIMIT - 1, max_size=PACKET_LIMIT + 1),
    ANSWERS,
    st.builds(lambda packet, more: packet + more, ANSWERS, st.binary(max_size=64)),
)


@pytest.mark.fuzz
@given(PACKETS)
def test_any_packet(packet: bytes) -> None:
    """A hello and an answer are read, or refused with `ProtocolError`; the text is for people."""
    for read in (codec.check_hello, codec.answer):
        try:
            text = read(packet)
        except ProtocolError as error:
            text = str(error)
        assert text is None or (text.isprintable() and len(text) <= 2 * PACKET_LIMIT)


@pytest.mark.fuzz
@given(st.text(max_size=400), st.text(max_size=400), st.text(max_size=400), st.text(max_size=400))
def test_any_pod(uid: str, name: str, namespace: str, account: str) -> None:
    """A pod is encoded in what ztunnel can read, or refused with `PacketTooLargeError`."""
    pod = Pod(uid=PodUID(uid), name=name, namespace=namespace, service_account=account)
    try:
        assert len(codec.add_workload(pod)) <= PACKET_LIMIT
    except PacketTooLargeError:
        return
    for packet in (codec.keep_workload(pod.uid), codec.del_workload(pod.uid)):
        assert len(packet) <= PACKET_LIMIT


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
