"""The ztunnels that are connected: new workloads go to the newest, withdrawals to all.

During a rolling update of ztunnel's DaemonSet two are connected for a while.
"""

import asyncio
from collections.abc import Callable, Iterable
from functools import partial

from nodeagent.mesh.errors import GiveUpError, RefusedError
from nodeagent.mesh.pod import Pod, PodUID
from nodeagent.netns.netns import Netns
from nodeagent.zds import codec
from nodeagent.zds.desired import DesiredWorkload, DesiredWorkloads
from nodeagent.zds.session import Session


class ConnectedZtunnels:
    """Implements `nodeagent.mesh.dependencies.Ztunnels` over the sessions that are under way."""

    def __init__(
        self, on_answer: Callable[[PodUID], None], kept: Callable[[], Iterable[PodUID]]
    ) -> None:
        """`on_answer` is called when ztunnel's answer changes and nobody waits for it.

        `kept` returns the pods that a snapshot has to name, handed over or not.
        """
        self.desired = DesiredWorkloads(kept)
        self._on_answer = on_answer
        self._sessions: list[Session] = []
        """In the order of their hellos; the last one is the newest."""

    @property
    def connected(self) -> bool:
        """Whether there is a ztunnel that has said hello."""
        return bool(self._sessions)

    @property
    def connections(self) -> int:
        """How many ztunnels have said hello and are connected."""
        return len(self._sessions)

    async def offer(self, pod: Pod, netns: Netns) -> bool:
        """Hand `pod` over; see `nodeagent.mesh.dependencies.Ztunnels`."""
        try:
            packet = codec.add_workload(pod)
        except codec.PacketTooLargeError as error:
            raise GiveUpError(f"cannot be handed to ztunnel: {error}") from error
        workload = self.desired.get(pod.uid)
        if workload is None or workload.packet != packet or workload.netns is not netns:
            workload = DesiredWorkload(packet, netns, partial(self._on_answer, pod.uid))
            self.desired.put(pod.uid, workload)
        if workload.answer == "":
            return True
        if not self._sessions:
            return False
        workload.await_answer()
        self._sessions[-1].compare(pod.uid)
        if error_text := await workload.answered():
            raise RefusedError(f"ztunnel refuses it: {error_text}")
        return error_text == ""

    def answer_of(self, uid: PodUID) -> str | None:
        """Ztunnel's last answer about `uid`: empty for success, None where there is none."""
        workload = self.desired.get(uid)
        return workload.answer if workload else None

    def reclaim(self, uid: PodUID) -> None:
        """Have nothing more sent of the netns; see `nodeagent.mesh.dependencies.Ztunnels`."""
        self.desired.remove(uid)

    async def withdraw(self, uid: PodUID) -> None:
        """Have every ztunnel drop `uid`; see `nodeagent.mesh.dependencies.Ztunnels`."""
        self.desired.remove(uid)
        withdrawals = [session.withdraw(uid) for session in self._sessions if session.has_sent(uid)]
        if withdrawals:
            await asyncio.wait(withdrawals)

    async def serve(self, session: Session) -> None:
        """Serve one ztunnel from its hello to its end. Raises like `Session.run`."""
        await session.greet()
        for older in self._sessions:
            older.is_newest = False
        session.is_newest = True
        self._sessions.append(session)
        try:
            await session.run()
        finally:
            self._leave(session)

    def _leave(self, session: Session) -> None:
        self._sessions.remove(session)
        if not self._sessions:
            self.desired.stop_waiting()
        elif session.is_newest:
            newest = self._sessions[-1]
            newest.is_newest = True
            for uid in self.desired.to_add():
                newest.compare(uid)
