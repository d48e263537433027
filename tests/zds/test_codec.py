"""ZDS messages as bytes: whatever comes is read or refused, whatever goes fits."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.mesh.pod import Pod, PodUID
from nodeagent.zds import codec
from nodeagent.zds.codec import PACKET_LIMIT, PacketTooLargeError, ProtocolError
from tests.zds.packets import PACKETS


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
