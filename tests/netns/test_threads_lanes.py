"""Pods that make their own looks slow, and those beside them (L36)."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial

import pytest

from nodeagent.linux import syscalls as kernel
from nodeagent.netns.costs import NO_LIMITS, Cost
from nodeagent.netns.netns import Netns
from nodeagent.netns.threads import LANE, MOST_OVERTIME, SLOW_LANE, NetnsThreads, TooCostlyError
from nodeagent.observer import Observer
from tests.descriptors import open_descriptors
from tests.eventually import PATIENCE, eventually
from tests.lab.pod import call_in_thread

FOREVER = 3600.0
"""Seconds."""
BRIEFLY = 0.001


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def cost(self) -> Cost:
        return Cost(held=self.now, used=self.now)

    def waiting(self) -> Cost:
        return Cost(held=self.now, used=0)


@pytest.fixture
def pods() -> Iterator[Callable[[int], list[Netns]]]:
    """Make so many network namespaces with nothing in them."""
    with contextlib.ExitStack() as opened:

        def one() -> Netns:
            kernel.unshare(kernel.CLONE_NEWNET)
            return Netns.open("/proc/thread-self/ns/net")

        yield lambda count: [opened.enter_context(call_in_thread(one)) for _ in range(count)]


class Blocked:
    """Jobs that run until they are let go."""

    def __init__(self, threads: NetnsThreads) -> None:
        self._threads = threads
        self._release = threading.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self.begun = 0

    def add(self, netns: Netns) -> asyncio.Task[None]:
        def job() -> None:
            self.begun += 1
            assert self._release.wait(PATIENCE)

        task = asyncio.create_task(self._threads.run(netns, job))
        self._tasks.append(task)
        return task

    async def end(self) -> None:
        self._release.set()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def blocked(threads: NetnsThreads) -> AsyncIterator[Blocked]:
    made = Blocked(threads)
    try:
        yield made
    finally:
        await made.end()
        threads.close()


def thread_number() -> int:
    return sum(thread.name == "netns" for thread in threading.enumerate())


async def test_blocked_pods_hold_up_nobody(pods: Callable[[int], list[Netns]]) -> None:
    """L36: with 19 pods whose looks do not end, every job of another pod is done."""
    hostile = pods(LANE + MOST_OVERTIME - 1)
    (innocent,) = pods(1)
    threads = NetnsThreads(overtime=BRIEFLY)
    async with blocked(threads) as jobs:
        for netns in hostile:
            jobs.add(netns)
        for number in range(20):
            assert await threads.run(innocent, partial(int, number)) == number
        await eventually(lambda: jobs.begun == len(hostile))


async def test_waiting_is_told(pods: Callable[[int], list[Netns]]) -> None:
    """An observer hears how long each job has waited, once it begins."""
    waits: list[float] = []

    class Heard(Observer):
        def netns_job_began(self, waited: float) -> None:
            waits.append(waited)

    netns, other = pods(2)
    threads = NetnsThreads(1, overtime=FOREVER, observer=Heard())
    async with blocked(threads) as jobs:
        jobs.add(netns)
        await eventually(lambda: jobs.begun == 1)
        jobs.add(other)
        await asyncio.sleep(0.05)
        assert (len(waits), threads.jobs) == (1, 1)
        await jobs.end()
        assert (len(waits), threads.jobs) == (2, 0)
        assert waits[1] > 0.04


async def test_number_of_threads_is_bounded(pods: Callable[[int], list[Netns]]) -> None:
    """However many pods block, there are so many threads and no more; then all get their turn."""
    hostile = pods(40)
    async with blocked(NetnsThreads(overtime=BRIEFLY)) as jobs:
        for netns in hostile:
            jobs.add(netns)
        await eventually(lambda: jobs.begun == LANE + MOST_OVERTIME)
        assert thread_number() == LANE + MOST_OVERTIME
        await jobs.end()
        assert jobs.begun == len(hostile)
        assert thread_number() <= LANE + MOST_OVERTIME


async def test_one_job_at_a_time_in_a_netns(
    pods: Callable[[int], list[Netns]],
) -> None:
    """A pod that asks for much, through one netns, holds one thread."""
    (one, other) = pods(2)
    async with blocked(NetnsThreads(overtime=BRIEFLY)) as jobs:
        for _ in range(LANE + 1):
            jobs.add(one)
        await eventually(lambda: jobs.begun == 1)
        other_job = jobs.add(other)
        await eventually(lambda: jobs.begun == 2)
        assert thread_number() == 2
        await jobs.end()
        assert other_job.done()
        assert jobs.begun == LANE + 2


async def test_costly_pods_share_a_lane_of_their_own(
    pods: Callable[[int], list[Netns]],
) -> None:
    """Pods that have cost much take no place of the others, not even of a single one."""
    clock = Clock()
    costly, (innocent,) = pods(2 * SLOW_LANE), pods(1)
    threads = NetnsThreads(1, overtime=BRIEFLY, so_far=clock.waiting)
    async with blocked(threads) as jobs:
        for netns in costly:
            await threads.run(netns, lambda: move(clock, 1.5))
        clock.now = 0
        for netns in costly:
            jobs.add(netns)
        await eventually(lambda: jobs.begun == SLOW_LANE)
        for number in range(10):
            assert await threads.run(innocent, partial(int, number)) == number
        assert jobs.begun == SLOW_LANE
        await jobs.end()
        assert jobs.begun == len(costly)


def move(clock: Clock, seconds: float) -> None:
    clock.now += seconds


async def test_pod_that_costs_too_much_is_refused(
    pods: Callable[[int], list[Netns]],
) -> None:
    """Beyond its allowance it is told to come back later, at once, and others go on."""
    clock = Clock()
    greedy, innocent = pods(2)
    with contextlib.closing(NetnsThreads(so_far=clock.cost)) as threads:
        await threads.run(greedy, lambda: move(clock, 1.1))
        for _ in range(20):
            with pytest.raises(TooCostlyError, match="spaced out"):
                await threads.run(greedy, lambda: None)
            await threads.run(innocent, lambda: None)
        move(clock, 11)  # a hundredth of it is forgiven
        await threads.run(greedy, lambda: None)


async def test_pod_that_waits_for_a_busy_machine(
    pods: Callable[[int], list[Netns]],
) -> None:
    """What takes long and does not use the processor is not refused: a starting node is slow."""
    clock = Clock()
    (slow,) = pods(1)
    with contextlib.closing(NetnsThreads(so_far=clock.waiting)) as threads:
        for _ in range(5):
            await threads.run(slow, partial(move, clock, 100))


async def test_host_never_rests(pods: Callable[[int], list[Netns]]) -> None:
    """Without limits nothing is held against a netns: the host's may be slow by nature."""
    clock = Clock()
    (host,) = pods(1)
    with contextlib.closing(NetnsThreads(1, limits=NO_LIMITS, so_far=clock.cost)) as threads:
        for _ in range(5):
            await threads.run(host, partial(move, clock, 100))


async def test_caller_that_is_cancelled_before_its_turn(
    pods: Callable[[int], list[Netns]],
) -> None:
    """Its job never begins, its descriptor is given back, and the next has its turn."""
    (one, other) = pods(2)
    threads = NetnsThreads(1, overtime=FOREVER)
    async with blocked(threads) as jobs:
        jobs.add(one)
        await eventually(lambda: jobs.begun == 1)
        before = open_descriptors()
        in_line = [jobs.add(netns) for netns in (one, one, other, other)]
        await asyncio.sleep(0)
        for task in in_line:
            task.cancel()
        await asyncio.wait(in_line)
        assert open_descriptors() == before
        await jobs.end()
        assert jobs.begun == 1
        assert await threads.run(one, lambda: "next") == "next"
        assert await threads.run(other, lambda: "next") == "next"


async def test_caller_that_is_cancelled_during_its_job(
    pods: Callable[[int], list[Netns]],
) -> None:
    """The netns's next job waits for the one that nobody waits for any more."""
    (one,) = pods(1)
    threads = NetnsThreads(overtime=BRIEFLY)
    async with blocked(threads) as jobs:
        given_up = jobs.add(one)
        await eventually(lambda: jobs.begun == 1)
        given_up.cancel()
        await asyncio.wait([given_up])
        after = asyncio.create_task(threads.run(one, lambda: "after"))
        await asyncio.sleep(0)
        assert not after.done()
        await jobs.end()
        assert await after == "after"
