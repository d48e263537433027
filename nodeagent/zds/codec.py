"""ZDS messages as bytes, and back. Pure: no socket, no descriptor."""

from google.protobuf.message import DecodeError

from nodeagent.mesh.pod import Pod, PodUID
from nodeagent.zds import zds_pb2 as pb

PACKET_LIMIT = 1024
"""Bytes that ztunnel reads at once; it takes a truncated packet for a protocol error."""


class ProtocolError(Exception):
    """The peer does not keep to the protocol: the connection has to end."""


class PacketTooLargeError(Exception):
    """A request would be longer than ztunnel reads."""


def add_workload(pod: Pod) -> bytes:
    """Encode the request to which the descriptor of the pod's netns is attached.

    Raises ``PacketTooLargeError``.
    """
    info = pb.WorkloadInfo(
        name=pod.name, namespace=pod.namespace, service_account=pod.service_account
    )
    return _request(pb.WorkloadRequest(add=pb.AddWorkload(uid=pod.uid, workload_info=info)))


def keep_workload(uid: PodUID) -> bytes:
    """Encode the request that leaves alone what ztunnel has for `uid`."""
    return _request(pb.WorkloadRequest(keep=pb.KeepWorkload(uid=uid)))


def del_workload(uid: PodUID) -> bytes:
    """Encode the request to drop `uid`."""
    request = pb.WorkloadRequest()
    getattr(request, "del").uid = uid  # the field's name is a keyword of Python
    return _request(request)


def snapshot_sent() -> bytes:
    """Encode the end of the snapshot."""
    return _request(pb.WorkloadRequest(snapshot_sent=pb.SnapshotSent()))


def check_hello(packet: bytes) -> None:
    """Accept a greeting of version 1. Raises ``ProtocolError``."""
    try:
        hello = pb.ZdsHello.FromString(packet)
    except DecodeError as error:
        raise ProtocolError("its first packet is no ZdsHello") from error
    if hello.version != pb.V1:
        raise ProtocolError(f"it speaks ZDS version {hello.version}; this agent speaks 1")


def answer(packet: bytes) -> str:
    """Read a response; the text is ztunnel's error, empty for success.

    The text gets into logs, events and terminals, so what is not printable is replaced.
    Raises ``ProtocolError``.
    """
    try:
        response = pb.WorkloadResponse.FromString(packet)
    except DecodeError as error:
        raise ProtocolError("its answer is no WorkloadResponse") from error
    if response.WhichOneof("payload") != "ack":
        raise ProtocolError("its answer carries no Ack")
    return "".join(each if each.isprintable() else "?" for each in response.ack.error)


def _request(message: pb.WorkloadRequest) -> bytes:
    packet = message.SerializeToString()
    if len(packet) > PACKET_LIMIT:
        raise PacketTooLargeError(
            f"the request takes {len(packet)} bytes; ztunnel reads at most {PACKET_LIMIT}"
        )
    return packet
