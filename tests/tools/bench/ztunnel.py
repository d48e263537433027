"""The two ztunnels of the bench: one that only answers and looks at its watch, and the stub."""

import json
import os
import socket
import threading
import time
from collections.abc import Callable
from datetime import datetime
from types import TracebackType
from typing import Self

from nodeagent.zds import zds_pb2 as pb
from tests.eventually import PATIENCE
from tests.tools.bench.programs import Agent, Program

_HELLO = pb.ZdsHello(version=pb.V1).SerializeToString()
_OK = pb.WorkloadResponse(ack=pb.Ack()).SerializeToString()
_ONE_DESCRIPTOR = socket.CMSG_SPACE(4)


class PlainZtunnel:
    """Accepts everything at once, so that the agent's time is all there is.

    Times are ``time.perf_counter``'s, taken when the answer has been sent.
    """

    def __init__(self, agent: Agent) -> None:
        """Connect, and wait for the end of the snapshot."""
        self._agent = agent
        self.accepted: dict[str, float] = {}
        self.deleted: set[str] = set()
        self._snapshot: float | None = None
        self._stirred = threading.Condition()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._thread = threading.Thread(target=self._answer, name="plain ztunnel")
        self._socket.connect(agent.zds)
        self._greeted = time.perf_counter()
        self._socket.send(_HELLO)
        self._thread.start()
        self._until(lambda: self._snapshot is not None)

    @property
    def snapshot_time(self) -> float:
        """Seconds from the hello to the answer to SnapshotSent."""
        assert self._snapshot is not None
        return self._snapshot - self._greeted

    def accept_all(self, uids: list[str]) -> float:
        """Wait until all `uids` were accepted; the time of the last."""
        self._until(lambda: all(uid in self.accepted for uid in uids))
        return max(self.accepted[uid] for uid in uids)

    def delete_all(self, uids: list[str]) -> None:
        """Wait until all `uids` were deleted."""
        self._until(lambda: self.deleted.issuperset(uids))

    def forget(self) -> None:
        """What is waited for from now on is to come anew."""
        with self._stirred:
            self.accepted.clear()
            self.deleted.clear()

    def _until(self, condition: Callable[[], bool]) -> None:
        with self._stirred:
            if not self._stirred.wait_for(condition, PATIENCE):
                raise RuntimeError(f"nothing from the agent; its log:\n{self._agent.last_words()}")

    def _answer(self) -> None:
        while True:
            packet, descriptors, _, _ = socket.recv_fds(self._socket, 1024, 1)
            for descriptor in descriptors:
                os.close(descriptor)
            if not packet:
                return
            self._socket.send(_OK)
            now = time.perf_counter()
            request = pb.WorkloadRequest.FromString(packet)
            with self._stirred:
                match request.WhichOneof("payload"):
                    case "add":
                        self.accepted[request.add.uid] = now
                    case "del":
                        self.deleted.add(getattr(request, "del").uid)
                    case "snapshot_sent":
                        self._snapshot = now
                self._stirred.notify_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()


def stub_snapshot(agent: Agent, directory: str) -> float:
    """Seconds from the hello of a fresh ``ztunnel-stub`` to its answer to SnapshotSent.

    It opens its listeners in every pod meanwhile. The times are those of its record.
    """
    record = os.path.join(directory, "record.jsonl")
    stub = Program(
        os.path.join(directory, "stub.log"),
        "ztunnel_stub",
        *("--inpod-uds", agent.zds),
        *("--admin-address", ""),
        *("--readiness-address", ""),
        *("--record", record),
        *("--log-level", "warning"),
    )
    with stub:
        stub.until(lambda: _has_snapshot(record), "snapshot at the stub")
    with open(record, encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    os.unlink(record)
    end = next(n for n, line in enumerate(lines) if "snapshot_sent" in line.get("message", {}))
    return _seconds(lines[end + 1]) - _seconds(lines[0])


def _has_snapshot(record: str) -> bool:
    try:
        with open(record, "rb") as file:
            file.seek(max(0, os.path.getsize(record) - 1024))
            _, found, after = file.read().partition(b"snapshot_sent")
    except FileNotFoundError:
        return False
    return bool(found) and after.count(b"\n") == 2


def _seconds(line: dict[str, str]) -> float:
    return datetime.fromisoformat(line["time"]).timestamp()
