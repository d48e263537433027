"""A node reduced to what the heart can see of it: stateful, and able to fail."""

import asyncio
import contextlib
import os
from collections import defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from nodeagent.mesh.annotation import Redirection
from nodeagent.mesh.dependencies import Dependencies, Inspection, Ztunnels
from nodeagent.mesh.eligibility import Policy, Wanted
from nodeagent.mesh.errors import RefusedError, RetryError
from nodeagent.mesh.pod import Pod, PodUID
from nodeagent.mesh.progress import State
from nodeagent.mesh.reconciler import Reconciler
from nodeagent.mesh.table import Table
from nodeagent.mesh.workload import Workload
from nodeagent.observer import NOBODY, Observer
from tests.eventually import PATIENCE, eventually


@dataclass(eq=False)
class Held:
    """One descriptor of a netns."""

    node: "Node"
    id: int

    def __post_init__(self) -> None:
        self.node.open.append(self)

    def close(self) -> None:
        if self in self.node.open:
            self.node.open.remove(self)


@dataclass(eq=False)
class Watching:
    """One watch over a netns."""

    node: "Node"

    def __post_init__(self) -> None:
        self.node.watches.append(self)

    def arm(self) -> None:
        assert self in self.node.watches

    def close(self) -> None:
        self.node.watches.remove(self)


@dataclass
class Probed:
    """The host's set."""

    node: "Node"

    async def ensure(self, pod: Pod) -> tuple[str, ...]:
        await self.node.step("probe", pod.uid)
        self.node.probed.add(pod.uid)
        return ()

    async def remove(self, uid: PodUID) -> None:
        await self.node.step("unprobe", uid)
        self.node.probed.discard(uid)


@dataclass
class Node:
    """Namespaces, rules and a ztunnel; every step is written down in `steps`."""

    netns_ids: dict[PodUID, int] = field(default_factory=dict)
    rules: set[int] = field(default_factory=set)
    outdated: set[int] = field(default_factory=set)
    """Of `rules`: as an earlier version made them."""
    ztunnel: dict[PodUID, int] | None = field(default_factory=dict)
    refusing: bool = False
    annotations: dict[PodUID, Redirection | None] = field(default_factory=dict)
    written: dict[PodUID, list[Redirection | None]] = field(
        default_factory=lambda: defaultdict(list)
    )
    """Every value that a pod's annotation ever had, in order, as Istio's control plane sees it."""
    table: Table[Held] | None = None
    breaches: list[str] = field(default_factory=list)
    """What the heart did to an annotation that it must not (L41)."""
    left: set[PodUID] = field(default_factory=set)
    """The pods that were not wanted at some time since their annotation was `enabled`."""
    failures: dict[str, list[Exception | asyncio.Event]] = field(
        default_factory=lambda: defaultdict(list)
    )
    """What the next runs of a step meet: an error, or an event that they wait for."""
    steps: list[tuple[str, PodUID]] = field(default_factory=list)
    open: list[Held] = field(default_factory=list)
    connections: int = 0
    probed: set[PodUID] = field(default_factory=set)
    undelivered: set[PodUID] = field(default_factory=set)
    """The pods of which the API has not taken the last report."""
    silent: tuple[int, ...] = ()
    watches: list[Watching] = field(default_factory=list)
    unwatchable: bool = False
    failed_for_good: list[str] = field(default_factory=list)
    busy: set[PodUID] = field(default_factory=set)

    async def step(self, name: str, uid: PodUID) -> None:
        assert uid not in self.busy, "two parts of one pod's work at the same time"
        self.busy.add(uid)
        await asyncio.sleep(0)
        self.busy.discard(uid)
        self.steps.append((name, uid))
        if self.failures[name]:
            failure = self.failures[name].pop(0)
            if isinstance(failure, Exception):
                raise failure
            await failure.wait()

    def cut_off(self) -> None:
        """End what the agent had, as its process ends: what is in the kernel stays."""
        self.open.clear()
        self.watches.clear()
        self.busy.clear()
        self.failures.clear()

    def did(self, uid: str) -> list[str]:
        return [name for name, of in self.steps if of == uid]

    async def find(self, pod: Pod, handed_over: str | None, held: Held | None = None) -> Held:
        await self.step("find", pod.uid)
        if handed_over is not None:
            return self.opened(int(os.path.basename(handed_over)), held)
        if pod.uid not in self.netns_ids:
            raise RetryError("no such netns")
        if not pod.addresses:
            raise RetryError("holds none of the pod's addresses")
        return self.opened(self.netns_ids[pod.uid], held)

    def found_at(self, pod: Pod) -> str:
        return f"/netns/{self.netns_ids[pod.uid]}" if pod.uid in self.netns_ids else ""

    def opened(self, netns: int, held: Held | None) -> Held:
        return held if held is not None and held.id == netns else Held(self, netns)

    async def watch(self, netns: Held, _: PodUID) -> "Watching":
        assert netns in self.open
        if self.unwatchable:
            raise RetryError("no memory for a watch")
        return Watching(self)

    async def ensure(self, netns: Held, pod: Pod) -> Inspection:
        assert netns in self.open
        await self.step("ensure", pod.uid)
        installed = netns.id in self.rules
        right = installed and netns.id not in self.outdated
        self.rules.add(netns.id)
        self.outdated.discard(netns.id)
        return Inspection(() if right else ("rules differed",), self.silent)

    async def is_installed(self, netns: Held) -> bool:
        assert netns in self.open
        return netns.id in self.rules

    async def inspect(self, netns: Held, pod: Pod) -> tuple[str, ...]:
        assert netns in self.open
        await self.step("inspect", pod.uid)
        return () if netns.id in self.rules else ("rules are missing",)

    async def release(self, netns: Held, pod: Pod) -> int:
        assert netns in self.open
        await self.step("release", pod.uid)
        return self.connections if netns.id in self.rules else 0

    async def remove(self, netns: Held, _pod: Pod) -> bool:
        assert netns in self.open
        installed = netns.id in self.rules
        await self.step("remove", PodUID(str(netns.id)))
        self.rules.discard(netns.id)
        return installed

    async def offer(self, pod: Pod, netns: Held) -> bool:
        assert netns in self.open
        await self.step("offer", pod.uid)
        if self.ztunnel is None:
            return False
        if self.refusing:
            raise RefusedError("cannot bind")
        self.ztunnel[pod.uid] = netns.id
        return True

    def reclaim(self, uid: PodUID) -> None:
        self.steps.append(("reclaim", uid))

    async def withdraw(self, uid: PodUID) -> None:
        await self.step("withdraw", uid)
        if self.ztunnel is not None:
            self.ztunnel.pop(uid, None)

    def report(self, pod: Pod, redirection: Redirection | None) -> None:
        self.steps.append((f"report {redirection.value if redirection else None}", pod.uid))
        assert self.table is not None
        workload = self.table.get(pod.uid)
        leaves = workload is None or workload.decision.wanted is Wanted.NO or pod.uid in self.left
        if self.written[pod.uid][-1:] == [Redirection.ENABLED]:
            if redirection is Redirection.PENDING:
                self.breaches.append(f"{pod.uid}: back from enabled to pending")
            if redirection is None and not leaves:
                self.breaches.append(f"{pod.uid}: not enabled any more, and wanted")
        if workload is not None and workload.decision.wanted is not Wanted.NO:
            self.left.discard(pod.uid)
        self.annotations[pod.uid] = redirection
        self.written[pod.uid].append(redirection)

    def delivered(self, uid: PodUID) -> bool:
        return uid not in self.undelivered

    def contested(self, pod: Pod, times: int) -> None:
        self.steps.append((f"contested {times}", pod.uid))

    def unprotected(self, pod: Pod) -> None:
        self.steps.append(("unprotected", pod.uid))

    def broken(self, pod: Pod, reason: str) -> None:
        self.steps.append((f"broken: {reason}", pod.uid))

    def netns_conflict(self, pod: Pod, netns: str, holder: Pod) -> None:
        self.steps.append((f"conflict over {netns} with {holder.uid}", pod.uid))

    def forget(self, uid: PodUID) -> None:
        self.annotations.pop(uid, None)
        self.written.pop(uid, None)

    def failed(self, pod: Pod, reason: str) -> None:
        self.failed_for_good.append(f"{pod}: {reason}")


class Bench:
    """A reconciler over a node, with the means to wait for what it does."""

    def __init__(self, node: Node, reconciler: Reconciler[Held]) -> None:
        self.node = node
        self.table = reconciler.table
        self.reconciler = reconciler

    def workload(self, uid: str) -> Workload[Held]:
        workload = self.table.get(PodUID(uid))
        assert workload is not None
        return workload

    async def until_state(self, uid: str, state: State) -> None:
        await eventually(lambda: self.workload(uid).state is state)

    def repairs(self, uid: str) -> object:
        return self.workload(uid).describe()["repairs"]

    async def settled(self) -> None:
        """Wait until nothing is due before the next verification."""
        async with asyncio.timeout(PATIENCE):
            quiet, before = 0, None
            while quiet < 20:
                await asyncio.sleep(0.001)
                now = [(each.uid, each.state, each.progress.attempts) for each in self.table]
                due = any(each.state is State.RETRYING or each.gone for each in self.table)
                quiet = quiet + 1 if now == before and not due and not self.node.busy else 0
                before = now


@contextlib.asynccontextmanager
async def bench(
    node: Node,
    *,
    verify_interval: float = 3600,
    removal_grace: float = 0,
    ztunnels: Ztunnels[Held] | None = None,
    observer: Observer = NOBODY,
) -> AsyncIterator[Bench]:
    dependencies = Dependencies(
        netns_finder=node,
        redirector=node,
        ztunnels=ztunnels or node,
        probes=Probed(node),
        reporter=node,
        observer=observer,
        removal_grace=removal_grace,
    )
    with contextlib.suppress(asyncio.CancelledError):
        async with asyncio.TaskGroup() as workers:
            reconciler = Reconciler(
                Table[Held](Policy()), dependencies, workers, verify_interval=verify_interval
            )
            node.table = reconciler.table
            yield Bench(node, reconciler)
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                if task.get_name().startswith("pod "):
                    task.cancel()
    assert node.breaches == []
