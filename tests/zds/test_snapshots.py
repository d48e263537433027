"""L31: no pod that is wanted is ever missing from a snapshot, whatever its looks meet."""

import asyncio
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from nodeagent.mesh.errors import GiveUpError, RetryError
from nodeagent.mesh.pod import REDIRECTION, Namespace, PodUID
from nodeagent.mesh.sandbox import Sandbox
from nodeagent.netns.netns import Netns
from tests.eventually import eventually
from tests.mesh.node import Bench, Held, Node, bench
from tests.mesh.pods import AMBIENT, a_pod
from tests.virtual_time import run_virtually
from tests.zds.conftest import Served, serving
from tests.zds.model import ModelZtunnel, Mood, new_netns

pytestmark = pytest.mark.virtual_time

UIDS = st.sampled_from("123")
FAULTS = st.sampled_from(["retry", "give up", "bug", "hang"])
STEPS = st.one_of(
    st.tuples(st.just("see"), UIDS, st.booleans(), st.booleans()),
    st.tuples(st.just("gone"), UIDS),
    st.tuples(st.just("namespace"), st.sampled_from(["plain", "ambient", "unknown"])),
    st.tuples(st.just("sandbox"), UIDS),
    st.tuples(st.just("ended"), UIDS),
    st.tuples(
        st.just("fail"), st.sampled_from(["find", "ensure", "probe", "unprobe", "remove"]), FAULTS
    ),
    st.tuples(st.just("go on")),
    st.tuples(st.just("connect")),
    st.tuples(st.just("disconnect"), st.integers(0, 3)),
    st.tuples(st.just("mood"), st.integers(0, 3), st.sampled_from(Mood)),
    st.tuples(st.just("turn"), st.integers(1, 30)),
)


@dataclass(eq=False)
class Lent(Held):
    """A netns that can be sent to ztunnel, for as long as it is open."""

    netns: list[Netns] = field(default_factory=list)

    @property
    def fd(self) -> int:
        if self not in self.node.open:
            self.node.breaches.append(f"{self.id} is sent, and closed")
        return self.netns[self.id].fd


@dataclass
class LendingNode(Node):
    """A node whose network namespaces are real."""

    lent: list[Netns] = field(default_factory=list)

    def opened(self, netns: int, held: Held | None) -> Held:
        if held is not None and held.id == netns:
            return held
        return Lent(self, netns, self.lent)


@pytest.fixture(scope="module")
def netns() -> Iterator[list[Netns]]:
    made = [new_netns() for _ in range(8)]
    yield made
    for one in made:
        one.close()


class World:
    """What outlives an agent: the pods, and what the cluster says of them."""

    def __init__(self, node: LendingNode) -> None:
        self.node = node
        self.pods: dict[str, bool] = {}
        self.kind = "plain"

    def wanted(self) -> set[str]:
        """The pods that are in the mesh, or may be."""
        return {uid for uid, labeled in self.pods.items() if labeled or self.kind != "plain"}


class Life:
    """One agent's life: plays what happens, and notes what each snapshot has to name."""

    def __init__(self, world: World, on: Bench, served: Served) -> None:
        self.world, self.on, self.served = world, on, served
        self.due: dict[ModelZtunnel, set[str]] = {}
        self.hanging = asyncio.Event()
        self.namespace(world.kind)
        for uid, labeled in dict(world.pods).items():
            self.see(uid, labeled, addressed=True)
        on.table.synced()

    def note(self) -> None:
        """A pod that is not wanted any more need not be in a snapshot that is not over."""
        for ztunnel, due in self.due.items():
            if not ztunnel.snapshot:
                due.intersection_update(self.world.wanted())

    def see(self, uid: str, labeled: bool, addressed: bool) -> None:
        self.world.pods[uid] = labeled
        self.world.node.netns_ids.setdefault(PodUID(uid), int(uid))
        changes: dict[str, Any] = {} if addressed else {"addresses": ()}
        if value := self.world.node.annotations.get(PodUID(uid)):
            changes["annotations"] = {REDIRECTION: value.value}
        self.on.table.pod_seen(a_pod(uid, labels=AMBIENT if labeled else {}, **changes))

    def gone(self, uid: str) -> None:
        self.world.pods.pop(uid, None)
        self.on.table.pod_gone(PodUID(uid))

    def namespace(self, kind: str) -> None:
        self.world.kind = kind
        if kind == "unknown":
            self.on.table.namespace_gone("shop")
        else:
            labels = AMBIENT if kind == "ambient" else {}
            self.on.table.namespace_seen(Namespace("shop", labels))

    def sandbox(self, uid: str) -> None:
        """The runtime makes the pod's sandbox anew, and the plugin hands it over."""
        if (workload := self.on.table.get(PodUID(uid))) is None:
            return
        number = self.world.node.netns_ids[PodUID(uid)] = int(uid) + 4
        sandbox = Sandbox(
            container_id=f"c{number}",
            netns=f"/run/{number}",
            addresses=workload.seen.addresses,
            network="pods",
            interface="eth0",
        )
        self.on.table.handed_over(workload, sandbox)

    def ended(self, uid: str) -> None:
        if (workload := self.on.table.get(PodUID(uid))) is not None:
            self.on.table.sandbox_ended(workload)

    def fail(self, step: str, how: str) -> None:
        faults: dict[str, Exception | asyncio.Event] = {
            "retry": RetryError("a fault"),
            "give up": GiveUpError("a fault"),
            "bug": ZeroDivisionError("a fault"),
            "hang": self.hanging,
        }
        self.world.node.failures[step].append(faults[how])

    def go_on(self) -> None:
        self.hanging.set()

    def connect(self) -> None:
        self.due[self.served.connect()] = self.world.wanted()

    def disconnect(self, n: int) -> None:
        if ztunnel := self._ztunnel(n):
            ztunnel.close()

    def mood(self, n: int, mood: Mood) -> None:
        if ztunnel := self._ztunnel(n):
            ztunnel.mood = mood

    def _ztunnel(self, n: int) -> ModelZtunnel | None:
        live = [ztunnel for ztunnel in self.due if not ztunnel.ended]
        return live[n % len(live)] if live else None

    async def end(self) -> None:
        """Have one more ztunnel connect, while whatever hangs still does."""
        self.connect()
        while not await self.served.ztunnels[-1].snapshot_came():
            self.connect()  # as ztunnel does
        for ztunnel, due in self.due.items():
            if ztunnel.snapshot:
                assert due <= ztunnel.named, f"{due - ztunnel.named} not in the snapshot"

    async def settle(self) -> None:
        """Have every fault be over: what is not wanted, no ztunnel has."""
        self.world.node.failures.clear()
        self.go_on()
        for ztunnel in self.due:
            ztunnel.mood = Mood.WILLING
        for workload in self.on.table:
            self.on.table.wake(workload.uid)
        last = self.served.ztunnels[-1]
        await eventually(lambda: set(last.workloads) <= self.world.wanted())

    async def leave(self) -> None:
        """Have every pod go: no ztunnel that is connected has it any more."""
        for uid in dict(self.world.pods):
            self.gone(uid)
        await eventually(lambda: len(self.on.table) == 0)
        for ztunnel in self.due:
            assert ztunnel.ended or ztunnel.workloads == {}


async def play(lives: list[list[tuple[Any, ...]]], netns: list[Netns]) -> None:
    world = World(LendingNode(lent=netns))
    for number, steps in enumerate(lives or [[]], 1):
        with tempfile.TemporaryDirectory() as directory:
            async with (
                serving(Path(directory)) as served,
                bench(world.node, ztunnels=cast("Any", served.agent)) as on,
            ):
                served.reconciler = on.reconciler
                life = Life(world, on, served)
                for kind, *arguments in steps:
                    if kind == "turn":
                        for _ in range(*arguments):
                            await asyncio.sleep(0)
                    else:
                        getattr(life, kind.replace(" ", "_"))(*arguments)
                    life.note()
                await life.end()
                await life.settle()
                if number >= len(lives):
                    await life.leave()
        world.node.cut_off()


@settings(deadline=None)
@given(lives=st.lists(st.lists(STEPS, max_size=15), max_size=3))
def test_no_wanted_pod_is_ever_missing(
    lives: list[list[tuple[Any, ...]]], netns: list[Netns]
) -> None:
    """L31: with faults and hanging looks at any step, sandboxes replaced, and agents restarted."""
    with capture_logs():  # tracebacks take longer to render than ztunnel waits
        run_virtually(play(lives, netns))
