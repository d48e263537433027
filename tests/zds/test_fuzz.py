"""What strangers may send to the ZDS socket: any packets at all."""

import asyncio
import contextlib
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.zds import codec
from nodeagent.zds.codec import PACKET_LIMIT, ProtocolError
from tests.zds.conftest import serving
from tests.zds.model import HELLO, OK

PACKETS = st.one_of(
    st.sampled_from([HELLO, OK, HELLO + OK, b"", b"\x08", b"\x12\x80\x80\x80\x80\x10"]),
    st.binary(max_size=64),
    st.binary(min_size=PACKET_LIMIT - 1, max_size=PACKET_LIMIT + 1),
)


@pytest.mark.fuzz
@given(packet=PACKETS)
def test_packet_is_understood_or_refused(packet: bytes) -> None:
    """A packet is a message, or ends the connection; nothing else comes of it."""
    for read in (codec.check_hello, codec.answer):
        with contextlib.suppress(ProtocolError):
            read(packet)


@pytest.mark.fuzz
@given(packets=st.lists(PACKETS, max_size=6))
def test_stranger_disturbs_nobody(
    tmp_path_factory: pytest.TempPathFactory, packets: list[bytes]
) -> None:
    """Whatever one connection sends, a ztunnel that connects then gets its snapshot."""
    asyncio.run(play(tmp_path_factory.mktemp("zds"), packets))


async def play(directory: Path, packets: list[bytes]) -> None:
    faults: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, fault: faults.append(fault))
    async with serving(directory) as served:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stranger:
            stranger.connect(served.path)
            stranger.setblocking(False)
            for packet in packets:
                with contextlib.suppress(OSError):
                    stranger.send(packet)
            ztunnel = await served.connected()
            assert ztunnel.workloads == {}
    assert not faults
