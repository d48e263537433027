"""What a pass over procfs makes of whatever processes are called."""

import asyncio
import contextlib
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.mesh.errors import RetryError
from nodeagent.netns.procfs import Processes

UID = "2c48913c-b29f-11e7-9350-020968147796"
OTHER = "72f7f152-440c-66ac-9084-e0fc1d8a910c"
STAT = "7 (sleep) S 1 7 7 0 -1 4194560 97 0 0 0 0 0 0 0 20 0 1 0 12345 3133440 220"


def a_process(proc: Path, pid: int, cgroup: bytes, stat: bytes = STAT.encode()) -> None:
    (proc / str(pid) / "ns").mkdir(parents=True)
    (proc / str(pid) / "cgroup").write_bytes(cgroup)
    (proc / str(pid) / "stat").write_bytes(stat)
    (proc / str(pid) / "ns" / "net").symlink_to(f"net:[{pid}]")


def found(prefix: str, uid: str) -> list[str]:
    with contextlib.suppress(RetryError):
        return list(asyncio.run(Processes(prefix).paths(uid)))
    return []


pieces = st.sampled_from(
    [b"\n", b"/", b"0::", b"12:memory:", b"pod", UID.encode(), OTHER.encode(), b"/../..", b"\xff"]
)
texts = st.lists(pieces | st.binary(max_size=5), max_size=12).map(b"".join)


@pytest.mark.fuzz
@given(texts, texts, st.binary(max_size=30) | st.just(b"1 (" + b")" * 70_000))
def test_any_process(cgroup: bytes, init: bytes, stat: bytes) -> None:
    """Whatever stands in a process's files, the others are found."""
    with tempfile.TemporaryDirectory() as directory:
        proc = Path(directory) / "proc"
        a_process(proc, 1, init.replace(UID.encode(), b""))
        a_process(proc, 7, cgroup, stat)
        a_process(proc, 8, f"0::/kubepods/pod{UID}/x\n".encode())
        assert "/proc/8/ns/net" in found(directory, UID)


@pytest.mark.parametrize("name", ["a b) S 1", "(", ")", "a\nb", ""])
def test_name_of_a_process(tmp_path: Path, name: str) -> None:
    """A process that is called like the end of its own line is as old as it is."""
    cgroup = f"0::/kubepods/pod{UID}/x\n".encode()
    a_process(tmp_path / "proc", 7, cgroup, STAT.replace("sleep", name).encode())
    older = STAT.replace("12345", "1234")
    a_process(tmp_path / "proc", 8, cgroup, older.encode())
    assert found(str(tmp_path), UID) == ["/proc/8/ns/net", "/proc/7/ns/net"]


def test_too_many_cgroups(tmp_path: Path) -> None:
    """L39: a text that is not read to its end tells nothing: what follows may differ."""
    lines = f"5:misc:/kubepods/pod{UID}/".encode() + b"x" * 100_000
    a_process(tmp_path / "proc", 7, lines + f"\n4:pids:/kubepods/pod{OTHER}\n".encode())
    assert found(str(tmp_path), UID) == found(str(tmp_path), OTHER) == []


def test_node_in_a_pod(tmp_path: Path) -> None:
    """The pod in which the node itself runs is none of the node's."""
    node = f"0::/kubepods/pod{OTHER}/x".encode()
    a_process(tmp_path / "proc", 1, node + b"/init.scope\n")
    a_process(tmp_path / "proc", 7, node + f"/kubelet/kubepods/pod{UID}/y\n".encode())
    assert found(str(tmp_path), UID) == ["/proc/7/ns/net"]
    assert found(str(tmp_path), OTHER) == []
