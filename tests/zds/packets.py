"""What a peer at ztunnel's socket could send: answers, and bytes of any kind."""

from hypothesis import strategies as st

from nodeagent.zds import zds_pb2 as pb
from nodeagent.zds.codec import PACKET_LIMIT
from tests.zds.model import HELLO, OK

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
