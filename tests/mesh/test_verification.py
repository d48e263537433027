"""Looks at pods on demand: what they find, and that nothing has to wait for them."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from nodeagent.mesh.dependencies import Inspection
from nodeagent.mesh.errors import RetryError
from nodeagent.mesh.pod import Pod, PodUID
from nodeagent.mesh.progress import State
from nodeagent.mesh.verification import ALL_PATIENCE, PATIENCE, PAUSE, Verification, Verifications
from tests.eventually import eventually
from tests.mesh.node import Bench, Held, Node, bench
from tests.mesh.pods import SHOP, U1, a_pod, enrolled

pytestmark = pytest.mark.virtual_time


class Kernel:
    """What looks find; each takes so many seconds."""

    def __init__(self) -> None:
        self.found = Inspection()
        self.refuses = ""
        self.seconds: dict[PodUID, float] = {}
        self.looks: list[PodUID] = []
        self.now = 0
        self.most = 0

    async def look(self, netns: Held, pod: Pod) -> Inspection:
        assert netns in netns.node.open
        self.looks.append(pod.uid)
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await asyncio.sleep(self.seconds.get(pod.uid, 0.002))
        finally:
            self.now -= 1
        if self.refuses:
            raise RetryError(self.refuses)
        return self.found


@pytest.fixture
async def on() -> AsyncIterator[Bench]:
    async with bench(Node()) as made:
        await enrolled(made)
        yield made


async def verified(on: Bench, kernel: Kernel) -> Verification:
    return await Verifications(on.table, kernel).of(on.workload("1"))


async def test_all_is_right(on: Bench) -> None:
    """The kernel was asked, and had nothing to say."""
    found = await verified(on, Kernel())
    assert (found.ok, found.looked, found.wanted, found.state) == (True, True, "yes", "enrolled")


@pytest.mark.parametrize(
    ("inspection", "reason"),
    [
        (Inspection(differed=("rules are missing",)), "rules are missing"),
        (Inspection(silent=(15001, 15008)), "ztunnel does not listen on 15001, 15008: "),
    ],
)
async def test_what_is_wrong(on: Bench, inspection: Inspection, reason: str) -> None:
    """Rules that are gone, and a ztunnel that does not listen; the agent may think otherwise."""
    kernel = Kernel()
    kernel.found = inspection
    found = await verified(on, kernel)
    assert not found.ok
    assert found.reason.startswith(reason)
    assert (found.differences, found.silent) == (inspection.differed, inspection.silent)


async def test_what_cannot_be_looked_at_is_not_right(on: Bench) -> None:
    """L16: unknown is not yes."""
    kernel = Kernel()
    kernel.refuses = "looks take too long"
    found = await verified(on, kernel)
    assert (found.ok, found.looked) == (False, False)
    assert found.reason == "not looked at: looks take too long"


async def test_pod_that_makes_looks_slow_ends_them(on: Bench) -> None:
    """It costs some seconds of a look at all, and the pods after it are looked at."""
    await enrolled(on, "2")
    kernel = Kernel()
    kernel.seconds[U1] = 3600
    begun = asyncio.get_running_loop().time()
    first, second = await Verifications(on.table, kernel).all()
    assert (first.ok, second.ok) == (False, True)
    assert asyncio.get_running_loop().time() - begun < 2 * PATIENCE


async def test_many_slow_pods_have_one_bound(on: Bench) -> None:
    """However many there are, an answer comes, and says what was not looked at."""
    kernel = Kernel()
    for number in range(1, 30):
        await enrolled(on, str(number))
        kernel.seconds[PodUID(str(number))] = 3600
    begun = asyncio.get_running_loop().time()
    found = await Verifications(on.table, kernel).all()
    assert len(found) == 29
    assert not any(each.ok for each in found)
    assert asyncio.get_running_loop().time() - begun <= ALL_PATIENCE + 1


async def test_one_look_at_a_time(on: Bench) -> None:
    """However many ask, a look takes one of the places for jobs in pods."""
    for number in range(2, 9):
        await enrolled(on, str(number))
    kernel = Kernel()
    verifications = Verifications(on.table, kernel)
    passes = await asyncio.gather(*(verifications.all() for _ in range(20)))
    assert all(each.ok for found in passes for each in found)
    assert (kernel.most, len(kernel.looks)) == (1, 8)


async def test_asking_in_a_loop_costs_a_pod_little(on: Bench) -> None:
    """Looks are on the account of the pod, of which repairs need something, too."""
    kernel = Kernel()
    verifications = Verifications(on.table, kernel)
    begun = asyncio.get_running_loop().time()
    for _ in range(10):
        assert (await verifications.of(on.workload("1"))).ok
    assert asyncio.get_running_loop().time() - begun >= 9 * PAUSE


async def test_nobody_gets_what_was_seen_before(on: Bench) -> None:
    """A look begins after it was asked for; those who ask together share one."""
    kernel = Kernel()
    verifications = Verifications(on.table, kernel)
    workload = on.workload("1")
    assert (await verifications.of(workload)).ok
    kernel.found = Inspection(differed=("rules are missing",))
    results = await asyncio.gather(*(verifications.of(workload) for _ in range(50)))
    assert {each.reason for each in results} == {"rules are missing"}
    assert len(kernel.looks) == 2


async def test_enrollment_is_not_disturbed() -> None:
    """Nobody looks into a pod on its way: its worker does that anyway."""
    node, kernel = Node(), Kernel()
    async with bench(node) as on:
        on.table.namespace_seen(SHOP)
        on.table.pod_seen(a_pod())
        await on.until_state("1", State.RETRYING)
        found = await verified(on, kernel)
        assert (found.ok, kernel.looks) == (False, [])
        assert found.reason == "retrying: no such netns"


async def test_pod_whose_rules_are_being_written() -> None:
    """Its netns is open already, and the turn there is its worker's."""
    node, kernel, written = Node(), Kernel(), asyncio.Event()
    node.failures["ensure"].append(written)
    node.netns_ids[U1] = 1
    async with bench(node) as on:
        on.table.namespace_seen(SHOP)
        on.table.pod_seen(a_pod())
        await eventually(lambda: "ensure" in node.did("1"))
        assert not (await verified(on, kernel)).ok
        assert kernel.looks == []
        written.set()
        await on.until_state("1", State.ENROLLED)
        assert (await verified(on, kernel)).ok


async def test_pod_that_does_not_belong_in_the_mesh(on: Bench) -> None:
    """It is as it should be, with the reason, and nobody looks into it."""
    on.table.pod_seen(a_pod("5", labels={}))
    kernel = Kernel()
    found = await Verifications(on.table, kernel).of(on.workload("5"))
    assert (found.ok, found.wanted, found.reason) == (True, "no", "no enablement selector matches")
    assert kernel.looks == []


async def test_no_ztunnel(on: Bench) -> None:
    """A pod that is redirected to nobody is not in order."""
    on.node.ztunnel = None
    await on.until_state("1", State.ENROLLED)
    on.table.pod_seen(a_pod("2"))
    on.node.netns_ids[PodUID("2")] = 2
    await on.until_state("2", State.PENDING)
    found = await Verifications(on.table, Kernel()).of(on.workload("2"))
    assert not found.ok
    assert found.reason == "no ztunnel has accepted the pod: its traffic fails"
