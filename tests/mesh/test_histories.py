"""Any history of a node: after any news in any order, what is installed is what is wanted."""

import asyncio
from collections import defaultdict
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodeagent.mesh.annotation import Redirection
from nodeagent.mesh.eligibility import Wanted
from nodeagent.mesh.errors import RetryError
from nodeagent.mesh.pod import REDIRECTION, Namespace, PodUID
from nodeagent.mesh.progress import State
from tests.mesh.node import Bench, Node, bench
from tests.mesh.pods import AMBIENT, SANDBOX, a_pod
from tests.virtual_time import run_virtually

pytestmark = pytest.mark.virtual_time


STEPS = st.one_of(
    st.tuples(st.just("see"), st.sampled_from("123"), st.booleans(), st.booleans()),
    st.tuples(st.just("gone"), st.sampled_from("123")),
    st.tuples(st.just("namespace"), st.sampled_from(["plain", "ambient", "unknown"])),
    st.tuples(st.just("sandbox"), st.sampled_from("123"), st.integers(10, 12)),
    st.tuples(st.just("ztunnel"), st.sampled_from(["away", "there", "refusing"])),
    st.tuples(
        st.just("fail"),
        st.sampled_from(["find", "ensure", "offer", "withdraw", "probe", "unprobe"]),
    ),
    st.tuples(st.just("turns"), st.integers(1, 12)),
    st.tuples(st.just("ended"), st.sampled_from("123")),
    st.tuples(st.just("echo"), st.sampled_from("123")),
)


class History:
    """Plays news and faults, and knows how it must end."""

    def __init__(self, on: Bench) -> None:
        self.on = on
        self.pods: dict[PodUID, bool] = {}
        self.ambient = False
        self.heard: dict[PodUID, int] = defaultdict(int)
        """How many of the values that were written to a pod's annotation the watch has brought."""

    def see(self, uid: str, labeled: bool, addressed: bool) -> None:
        self.pods[PodUID(uid)] = labeled
        self.on.node.netns_ids.setdefault(PodUID(uid), int(uid))
        changes: dict[str, object] = {} if addressed else {"addresses": ()}
        heard = self.on.node.written[PodUID(uid)][: self.heard[PodUID(uid)]]
        if heard and (value := heard[-1]):
            changes["annotations"] = {REDIRECTION: value.value}
        self.on.table.pod_seen(a_pod(uid, labels=AMBIENT if labeled else {}, **changes))

    def begin_after(self, before: "History") -> None:
        """Have the first list brought to another agent: everything as it is now."""
        self.pods, self.ambient = before.pods, before.ambient
        self.heard |= {uid: len(self.on.node.written[uid]) for uid in self.pods}
        self.namespace("ambient" if self.ambient else "plain")
        for uid, labeled in dict(self.pods).items():
            self.see(uid, labeled, addressed=True)
        self.on.table.synced()
        node = self.on.node
        node.probed &= set(self.pods)  # as an agent does once it has its first list
        node.rules &= {node.netns_ids[uid] for uid in self.pods}  # the others end with their pods
        self.note_who_left()

    def echo(self, text: str) -> None:
        """Have the watch bring the next value of the annotation, however late."""
        uid = PodUID(text)
        if uid in self.pods and self.heard[uid] < len(self.on.node.written[uid]):
            self.heard[uid] += 1
            self.see(uid, self.pods[uid], addressed=True)

    def note_who_left(self) -> None:
        wanted = {workload.uid: workload.decision.wanted for workload in self.on.table}
        self.on.node.left |= {uid for uid in wanted if wanted[uid] is Wanted.NO}

    def upgrade(self) -> None:
        """Have the rules that are installed be those of another layout."""
        self.on.node.outdated |= self.on.node.rules

    def reboot(self) -> None:
        """Have nothing installed, as if the machine had been started anew."""
        self.on.node.rules.clear()
        if self.on.node.ztunnel is not None:
            self.on.node.ztunnel.clear()

    def ended(self, uid: str) -> None:
        """Have the runtime take the pod's sandbox down."""
        if (workload := self.on.table.get(PodUID(uid))) is not None:
            self.on.table.sandbox_ended(workload)

    def gone(self, uid: str) -> None:
        self.pods.pop(PodUID(uid), None)
        self.heard.pop(PodUID(uid), None)
        self.on.node.left.add(PodUID(uid))
        self.on.table.pod_gone(PodUID(uid))

    def namespace(self, kind: str) -> None:
        self.ambient = kind == "ambient"
        if kind == "unknown":
            self.on.table.namespace_gone("shop")
        else:
            self.on.table.namespace_seen(Namespace("shop", AMBIENT if self.ambient else {}))

    def sandbox(self, uid: str, number: int) -> None:
        self.on.node.netns_ids[PodUID(uid)] = number * 10 + int(uid)

    def ztunnel(self, kind: str) -> None:
        node = self.on.node
        node.refusing = kind == "refusing"
        if kind == "away":
            node.ztunnel = None
        elif node.ztunnel is None:
            node.ztunnel = {}

    def fail(self, step: str) -> None:
        self.on.node.failures[step].append(RetryError("a fault"))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(STEPS, max_size=25), max_size=3))
def test_any_history(lives: list[list[tuple[str, object]]]) -> None:
    """Level, not edge: after any news in any order, what is installed is what is wanted.

    Each list is one life of an agent.
    """
    run_virtually(play(lives))


ONE_PODS = st.one_of(
    st.tuples(st.just("ztunnel"), st.sampled_from(["away", "there", "refusing"])),
    st.tuples(st.just("sandbox"), st.just("1"), st.integers(10, 12)),
    st.tuples(st.just("ended"), st.just("1")),
    st.tuples(st.just("echo"), st.just("1")),
    st.tuples(st.just("see"), st.just("1"), st.booleans(), st.booleans()),
    st.tuples(st.just("fail"), st.sampled_from(["find", "ensure", "offer", "probe"])),
    st.tuples(st.just("upgrade")),
    st.tuples(st.just("reboot")),
)


IN_THE_MESH: list[tuple[str, object]] = [("see", "1", True, True), ("turns", 20)]  # type: ignore[list-item]


@settings(deadline=None)
@given(st.lists(st.lists(st.tuples(ONE_PODS, st.integers(0, 20)), max_size=8), max_size=3))
def test_annotation_in_any_history(lives: list[list[tuple[Any, int]]]) -> None:
    """L41: every value that is ever written: while the pod is wanted, none takes `enabled` back."""
    steps = [[each for step, turns in life for each in (step, ("turns", turns))] for life in lives]
    run_virtually(play([IN_THE_MESH, *steps]))


async def play(lives: list[list[tuple[str, object]]]) -> None:
    node = Node()
    before: History | None = None
    for number, steps in enumerate(lives or [[]], 1):
        async with bench(node) as on:
            history = History(on)
            if before is not None:
                history.begin_after(before)
            await play_steps(history, steps)
            if number >= len(lives):
                await finish(history)
        node.cut_off()
        before = history


async def play_steps(history: History, steps: list[tuple[str, object]]) -> None:
    for kind, *arguments in steps:
        if kind == "turns":
            for _ in range(*arguments):  # type: ignore[call-overload]
                await asyncio.sleep(0)
        else:
            getattr(history, kind)(*arguments)
            history.note_who_left()


async def finish(history: History) -> None:
    on, node = history.on, history.on.node
    node.failures.clear()
    history.ztunnel("there")
    history.namespace("ambient" if history.ambient else "plain")
    history.heard |= {uid: len(node.written[uid]) for uid in history.pods}
    for uid, labeled in dict(history.pods).items():
        history.see(uid, labeled, addressed=True)
    for workload in on.table:
        if workload.sandbox_ended is not None:
            on.table.handed_over(
                workload, replace(SANDBOX, netns=str(node.netns_ids[workload.uid]))
            )
        on.table.wake(workload.uid)
    await on.settled()
    inside = {uid for uid, labeled in history.pods.items() if labeled or history.ambient}
    assert {workload.uid for workload in on.table} == set(history.pods)
    assert {workload.uid for workload in on.table if workload.state is State.ENROLLED} == inside
    assert {uid: n for uid, n in (node.ztunnel or {}).items() if uid in history.pods} == {
        uid: node.netns_ids[uid] for uid in inside
    }
    assert sorted(held.id for held in node.open) == sorted(node.netns_ids[uid] for uid in inside)
    assert len(node.watches) == len(inside)
    assert node.probed == inside
    for uid in history.pods:
        expected = Redirection.ENABLED if uid in inside else None
        assert node.annotations.get(uid) is expected
        assert (node.netns_ids[uid] in node.rules) is (uid in inside)
