"""ZDS messages as values, from and to packets."""

import os
import socket
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from nodeagent.netns.netns import Netns, NotANetnsError
from nodeagent.zds import zds_pb2

MAX_PACKET = 1024
"""Bytes that ztunnel reads of a packet; a longer one is a protocol error."""


class ProtocolError(Exception):
    """The agent broke the protocol: tell it why, then close the connection."""


@dataclass(frozen=True, slots=True)
class WorkloadInfo:
    """What the agent says about a pod, for people."""

    name: str
    namespace: str
    service_account: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Add:
    """Serve this pod. Whoever takes the message owns the namespace."""

    uid: str
    info: WorkloadInfo
    namespace: Netns


@dataclass(frozen=True, slots=True)
class Keep:
    """Leave this pod as it is, in the snapshot only."""

    uid: str


@dataclass(frozen=True, slots=True)
class Delete:
    """Serve this pod no more."""

    uid: str


@dataclass(frozen=True, slots=True)
class SnapshotSent:
    """All pods were named."""


Request = Add | Keep | Delete | SnapshotSent


def decode(data: bytes, descriptors: list[int], flags: int) -> Request:
    """The message in a packet that ``recvmsg`` returned. Raises ``ProtocolError``.

    Takes over `descriptors`: each is in the result or closed.
    """
    try:
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise ProtocolError(
                f"the packet was truncated: over {MAX_PACKET} bytes, or too many descriptors"
            )
        try:
            message = zds_pb2.WorkloadRequest.FromString(data)
        except DecodeError as error:
            raise ProtocolError(f"not a WorkloadRequest: {error}") from error
        kind = message.WhichOneof("payload")
        if kind == "add":
            return _add(message.add, descriptors)
        if descriptors:
            raise ProtocolError(f"a {kind} message must not carry a descriptor")
        if kind == "keep":
            return Keep(message.keep.uid)
        if kind == "del":
            # A keyword in Python: the field has no attribute of its own name.
            deletion: zds_pb2.DelWorkload = getattr(message, "del")
            return Delete(deletion.uid)
        if kind == "snapshot_sent":
            return SnapshotSent()
        raise ProtocolError("a WorkloadRequest without a payload")
    finally:
        while descriptors:
            os.close(descriptors.pop())


def _add(add: zds_pb2.AddWorkload, descriptors: list[int]) -> Add:
    if len(descriptors) != 1:
        raise ProtocolError(f"an add message must carry one descriptor, not {len(descriptors)}")
    try:
        namespace = Netns(descriptors.pop())
    except NotANetnsError as error:
        raise ProtocolError(f"the descriptor is no network namespace: {error}") from error
    info = add.workload_info
    return Add(add.uid, WorkloadInfo(info.name, info.namespace, info.service_account), namespace)


def hello() -> bytes:
    """The first packet on a connection."""
    return zds_pb2.ZdsHello(version=zds_pb2.V1).SerializeToString()


def ack(error: str = "") -> bytes:
    """The answer to a request; an `error` says that it was not done."""
    return zds_pb2.WorkloadResponse(ack=zds_pb2.Ack(error=error)).SerializeToString()
