"""What the ztunnels of this node should have, and what they have answered.

`ztunnels.py` writes here what the heart wants. Each session compares it with what it has
sent to its own ztunnel. So a snapshot, a pod that comes in the middle of one, a ztunnel that
takes over and a withdrawal are all the same comparison, and nothing is lost, sent twice or
sent late, whatever happens in between.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator

from nodeagent.mesh.pod import PodUID
from nodeagent.netns.netns import Netns


class DesiredWorkload:
    """One workload as it is handed to ztunnel. Another netns or text makes another object."""

    __slots__ = ("_answered", "_on_answer", "answer", "netns", "packet")

    def __init__(self, packet: bytes, netns: Netns, on_answer: Callable[[], None]) -> None:
        """`netns` is on loan; `on_answer` is called for a changed answer nobody waits for."""
        self.packet = packet
        self.netns = netns
        self.answer: str | None = None
        """ztunnel's last answer: empty for success, None where there was none."""
        self._on_answer: Callable[[], None] | None = on_answer
        self._answered = asyncio.Event()
        self._answered.set()

    def await_answer(self) -> None:
        """Forget the last answer: the workload is to be sent again, and somebody waits for it."""
        self.answer = None
        self._answered.clear()

    async def answered(self) -> str | None:
        """Wait for the answer and return it; None: there will be none."""
        await self._answered.wait()
        return self.answer

    def take_answer(self, error: str) -> None:
        """A ztunnel has answered; `error` is empty for success."""
        if self._on_answer is None:
            return
        waited_for = not self._answered.is_set()
        changed, self.answer = self.answer != error, error
        self._answered.set()
        if changed and not waited_for:
            self._on_answer()

    def stop_waiting(self) -> None:
        """No ztunnel is connected that could answer."""
        self._answered.set()

    def retire(self) -> None:
        """It is not desired any more: an answer that is under way counts for nothing."""
        self._on_answer = None
        self.stop_waiting()


class DesiredWorkloads:
    """The desired workloads by UID, and the UIDs for which ztunnel has to keep what it has."""

    def __init__(self, kept: Callable[[], Iterable[PodUID]]) -> None:
        """`kept` returns the pods that a snapshot has to name, handed over or not."""
        self._kept = kept
        self._workloads: dict[PodUID, DesiredWorkload] = {}

    def __iter__(self) -> Iterator[PodUID]:
        """Every UID that a snapshot has to name, as a copy: what is desired may change."""
        return iter(dict.fromkeys((*self._workloads, *self._kept())))

    def __contains__(self, uid: PodUID) -> bool:
        """Whether a snapshot has to name `uid`."""
        return uid in self._workloads or uid in self._kept()

    def get(self, uid: PodUID) -> DesiredWorkload | None:
        """What ztunnel should have for `uid`; None: nothing, or nothing that is known yet."""
        return self._workloads.get(uid)

    def to_add(self) -> list[PodUID]:
        """The UIDs for which ztunnel should have a workload, as a copy."""
        return list(self._workloads)

    def stop_waiting(self) -> None:
        """No ztunnel is connected that could answer."""
        for workload in self._workloads.values():
            workload.stop_waiting()

    def put(self, uid: PodUID, workload: DesiredWorkload) -> None:
        """Have ztunnel get `workload` for `uid`, in place of what was desired before."""
        self.remove(uid)
        self._workloads[uid] = workload

    def remove(self, uid: PodUID) -> None:
        """Have nothing more of `uid` sent."""
        if (workload := self._workloads.pop(uid, None)) is not None:
            workload.retire()
