"""Network namespaces of pods, found by the pods' processes in procfs.

A process belongs to the pod that its cgroup names (`cgroup.py`). One pass reads the cgroup of
each process on the node, so pods that ask at about the same time share a pass.
"""

import asyncio
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from nodeagent.mesh.errors import RetryError
from nodeagent.netns.cgroup import pod_uid, pods_above
from nodeagent.netns.shared_scan import SharedScan

_MOST_READ = 64 << 10
"""Bytes of one file; the kernel writes at most 4 KiB for each of a dozen hierarchies (v1)."""
_MOST_NETNS = 8
"""Of one pod. A tenant can make more, but they are newer than the pod's own."""
_APART = 0.25
"""Seconds from one pass to the next at the least; one takes 10 ms with 1,000 processes."""
_START_TIME = 19
"""Field of ``/proc/PID/stat`` after the name in parentheses; number 22 in proc(5)."""


@dataclass(frozen=True, slots=True, order=True)
class _Process:
    started: int
    """In clock ticks since the boot."""
    pid: int


class Processes:
    """Finds a pod's netns by the pod's processes."""

    name = "procfs"

    def __init__(self, prefix: str) -> None:
        """`prefix` is before the host's ``/proc``; "" on a bare host."""
        self._proc = f"{prefix}/proc"
        self._scan = SharedScan(self._scan_in_thread, apart=_APART)

    async def paths(self, uid: str) -> Sequence[str]:
        """Paths on the host, one for each netns, that of the pod's oldest process first.

        A pod's oldest process is in the pod's netns; later ones may have made others.

        Raises ``RetryError`` where the pod has no process.
        """
        pids = await self._scan.ask(uid)
        if not pids:
            raise RetryError("no process is in a cgroup of the pod")
        return [f"/proc/{pid}/ns/net" for pid in pids]

    async def _scan_in_thread(self) -> Mapping[str, Sequence[int]]:
        try:
            return await asyncio.to_thread(scan_processes, self._proc)
        except OSError as error:  # of the thread: a scan raises none
            raise RetryError(f"no thread can be started: {error.strerror}") from error


def scan_processes(proc: str) -> Mapping[str, Sequence[int]]:
    """For each pod the PID of one process in each of its netns, the oldest process first.

    Raises ``RetryError``.
    """
    found: defaultdict[str, list[_Process]] = defaultdict(list)
    try:
        names = os.listdir(proc)
    except OSError as error:
        raise RetryError(f"cannot list {proc}: {error.strerror}") from error
    above = _above(proc)
    for name in filter(str.isdecimal, names):
        if (of_pod := _in_pod(proc, name, above)) is not None:
            uid, process = of_pod
            found[uid].append(process)
    return {uid: list(_one_each(proc, sorted(processes))) for uid, processes in found.items()}


def _above(proc: str) -> frozenset[str]:
    try:
        return pods_above(_read(f"{proc}/1/cgroup"))
    except (OSError, ValueError):
        return frozenset()


def _in_pod(proc: str, name: str, above: frozenset[str]) -> tuple[str, _Process] | None:
    try:
        uid = pod_uid(_read(f"{proc}/{name}/cgroup"), above)
        if uid is None:
            return None
        started = int(_read(f"{proc}/{name}/stat").rpartition(")")[2].split()[_START_TIME])
    except (OSError, IndexError, ValueError):
        return None  # it ended meanwhile
    return uid, _Process(started, int(name))


def _one_each(proc: str, processes: Sequence[_Process]) -> Iterator[int]:
    seen = set()
    for process in processes:
        try:
            netns = os.readlink(f"{proc}/{process.pid}/ns/net")
        except OSError:
            continue  # a zombie has none
        if netns not in seen:
            seen.add(netns)
            yield process.pid
        if len(seen) == _MOST_NETNS:
            return


def _read(path: str) -> str:
    """The text of a file in procfs. Raises ``OSError``, ``ValueError`` where it is too long."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = os.read(fd, _MOST_READ)
    finally:
        os.close(fd)
    if len(data) == _MOST_READ:
        raise ValueError(f"{path} has {_MOST_READ} bytes or more")
    return data.decode(errors="replace")
