"""What the ztunnels of this node should have, and what they said to it.

The heart writes here what it wants; each session compares it with what its own
ztunnel was told, so nothing is lost, doubled or late, whatever happens in between.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from nodeagent.mesh.errors import GiveUpError, RefusedError
from nodeagent.mesh.pod import Pod, PodUID
from nodeagent.netns.netns import Netns
from nodeagent.zds import codec
from nodeagent.zds.session import Session


@dataclass(slots=True, eq=False)
class Offer:
    """One workload as it is handed to ztunnel."""

    packet: bytes
    namespace: Netns
    """On loan from the heart."""
    serial: int
    """Tells an offer from an earlier one for the same UID."""
    answer: str | None = None
    """ztunnel's last word on this serial: empty for success, None where none was said."""
    answered: asyncio.Event = field(default_factory=asyncio.Event)


class Book:
    """The offers, and the sessions that carry them: adds to the newest, deletes to all (L11)."""

    def __init__(
        self, news: Callable[[PodUID], None], kept: Callable[[], Iterable[PodUID]]
    ) -> None:
        """`news` is called when ztunnel's word on a pod changes and nobody waits for it.

        `kept` returns the pods that a snapshot has to name, handed over or not (L31).
        """
        self._news = news
        self._kept = kept
        self._offers: dict[PodUID, Offer] = {}
        self._sessions: list[Session] = []
        self._serial = 0

    async def offer(self, pod: Pod, namespace: Netns) -> bool:
        """Hand `pod` over; see `nodeagent.mesh.dependencies.Ztunnels`."""
        try:
            packet = codec.add_workload(pod)
        except codec.PacketTooLargeError as error:
            raise GiveUpError(f"cannot be handed to ztunnel: {error}") from error
        offer = self._offers.get(pod.uid)
        if offer is None or offer.packet != packet or offer.namespace is not namespace:
            offer = self._write(pod.uid, packet, namespace)
        if offer.answer == "":
            return True
        if not self._sessions:
            return False
        offer.answer = None
        offer.answered.clear()
        self._sessions[-1].look_at(pod.uid)
        await offer.answered.wait()
        if offer.answer:
            raise RefusedError(f"ztunnel refuses it: {offer.answer}")
        return offer.answer == ""

    def reclaim(self, uid: PodUID) -> None:
        """Have nothing more sent of the namespace; see `nodeagent.mesh.dependencies.Ztunnels`."""
        if (offer := self._offers.pop(uid, None)) is not None:
            offer.answered.set()

    async def withdraw(self, uid: PodUID) -> None:
        """Have every ztunnel let go of `uid`; see `nodeagent.mesh.dependencies.Ztunnels`."""
        self.reclaim(uid)
        told = [session.forget(uid) for session in self._sessions if session.knows(uid)]
        if told:
            await asyncio.wait(told)

    def __iter__(self) -> Iterator[PodUID]:
        """Every UID that a snapshot has to name; a copy, so that the book may change meanwhile."""
        return iter(dict.fromkeys((*self._offers, *self._kept())))

    def __contains__(self, uid: PodUID) -> bool:
        return uid in self._offers or uid in self._kept()

    def get(self, uid: PodUID) -> Offer | None:
        """What is offered for `uid` now; None: nothing, or nothing yet."""
        return self._offers.get(uid)

    def is_newest(self, session: Session) -> bool:
        """Whether new workloads go to this session."""
        return bool(self._sessions) and self._sessions[-1] is session

    def join(self, session: Session) -> None:
        """A ztunnel has said hello: it is the newest now."""
        self._sessions.append(session)

    def leave(self, session: Session) -> None:
        """A ztunnel is gone: where it was the newest, the next newest takes over."""
        newest = self.is_newest(session)
        self._sessions.remove(session)
        if not self._sessions:
            for offer in self._offers.values():
                offer.answered.set()
        elif newest:
            for uid in self._offers:
                self._sessions[-1].look_at(uid)

    def answered(self, uid: PodUID, serial: int, error: str) -> None:
        """A ztunnel answered an add of this serial."""
        offer = self._offers.get(uid)
        if offer is None or offer.serial != serial:
            return
        awaited = not offer.answered.is_set()
        changed, offer.answer = offer.answer != error, error
        offer.answered.set()
        if changed and not awaited:
            self._news(uid)

    def _write(self, uid: PodUID, packet: bytes, namespace: Netns) -> Offer:
        self._serial += 1
        offer = Offer(packet, namespace, self._serial)
        offer.answered.set()
        if (former := self._offers.get(uid)) is not None:
            former.answered.set()
        self._offers[uid] = offer
        return offer
