"""The last transitions of each pod: what happened to it, when and why, for `nodeagent history`.

Everything is bounded, because a pod's owner can make as many transitions as he likes: the
number for each pod, the number of ended pods that are remembered, and the length of a
reason. Entries of the same kind that follow each other are one entry with a count.
"""

import time
from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass, replace

from nodeagent.mesh.pod import Pod, PodUID

LONGEST_REASON = 256
"""Characters. A reason may quote what a tenant has written."""
OF_A_POD = 16
"""Transitions of one pod: an enrollment has two or three."""
OF_A_CROWD = 4
"""Likewise, for each pod beyond the first `CROWD`."""
CROWD = 512
"""Pods; kubelet takes 110 unless told otherwise."""
ENDED = 64
"""Pods that are gone and still remembered."""


@dataclass(frozen=True, slots=True)
class Transition:
    """One thing that happened to a pod, once or several times in succession."""

    first: float
    """When it happened, or happened first; in seconds since the epoch."""
    last: float
    """When it happened last."""
    times: int
    what: str
    """The pod's new state, or an event such as ``repaired``."""
    why: str
    """The reason, or that of the last time; at the most `LONGEST_REASON` characters."""


class PodHistory:
    """The last transitions of one pod, the oldest first."""

    __slots__ = ("_transitions",)

    def __init__(self, most: int = OF_A_POD) -> None:
        """`most`: the number of transitions that are kept."""
        self._transitions: deque[Transition] = deque(maxlen=most)

    def __iter__(self) -> Iterator[Transition]:
        return iter(tuple(self._transitions))

    def note(self, what: str, why: str) -> None:
        """Something has happened to the pod now."""
        now = time.time()
        why = why if len(why) <= LONGEST_REASON else f"{why[: LONGEST_REASON - 1]}…"
        if self._transitions and (last := self._transitions[-1]).what == what:
            self._transitions[-1] = replace(last, last=now, times=last.times + 1, why=why)
        else:
            self._transitions.append(Transition(now, now, 1, what, why))


@dataclass(frozen=True, slots=True)
class Record:
    """The history of one pod, with the names that tell the pod apart."""

    namespace: str
    name: str
    uid: PodUID
    transitions: tuple[Transition, ...]


@dataclass(frozen=True, slots=True)
class _Kept:
    namespace: str
    name: str
    history: PodHistory


class History:
    """The histories of all pods of the node, and of those that have ended last."""

    def __init__(self) -> None:
        self._living: dict[PodUID, _Kept] = {}
        self._ended: OrderedDict[PodUID, _Kept] = OrderedDict()

    def __iter__(self) -> Iterator[Record]:
        """Those of ended pods first."""
        for uid, kept in (*self._ended.items(), *self._living.items()):
            yield Record(kept.namespace, kept.name, uid, tuple(kept.history))

    def begin(self, pod: Pod) -> PodHistory:
        """The history of a pod that is followed from now on; goes on with an earlier one."""
        kept = self._ended.pop(pod.uid, None)
        if kept is None:
            most = OF_A_POD if len(self._living) < CROWD else OF_A_CROWD
            kept = _Kept(pod.namespace, pod.name, PodHistory(most))
        self._living[pod.uid] = kept
        return kept.history

    def end(self, uid: PodUID) -> None:
        """The pod is not followed any more."""
        if (kept := self._living.pop(uid, None)) is not None:
            self._ended[uid] = kept
            if len(self._ended) > ENDED:
                self._ended.popitem(last=False)
