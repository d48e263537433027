"""Entering a netns never leaks: neither into the wrong one, nor a descriptor."""

import asyncio
import ctypes
import os
import threading

import pytest

from nodeagent.netns.netns import Netns, NetnsId
from nodeagent.netns.threads import NetnsThreads
from tests.descriptors import open_descriptors
from tests.eventually import PATIENCE, eventually
from tests.lab.lab import Lab

_libc = ctypes.CDLL(None, use_errno=True)


def here() -> NetnsId:
    return NetnsId.of_path("/proc/thread-self/ns/net")


def give_up_all_capabilities() -> str:
    """Make the calling thread unable to go anywhere else; return its name."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3
    nothing = (ctypes.c_uint32 * 6)()
    if _libc.capset(header, nothing) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return str(threading.get_native_id())


async def test_each_job_is_where_it_should_be(lab: Lab, threads: NetnsThreads) -> None:
    """L5: thousands of jobs at once in different namespaces each see their own."""
    pods = [lab.add_pod(name) for name in "abc"]
    namespaces = [Netns.open(pod.path) for pod in pods]
    seen = await asyncio.gather(
        *(threads.run(namespaces[n % 3], here) for n in range(3000)),
    )
    assert seen == [namespaces[n % 3].id for n in range(3000)]
    with Netns.current() as own:
        assert await threads.run(own, here) == here(), "and the threads come home"
    for netns in namespaces:
        netns.close()


async def test_exception_comes_back(lab: Lab, threads: NetnsThreads) -> None:
    """What the job raises is raised in the caller, and the thread goes on."""
    with Netns.open(lab.add_pod("a").path) as netns:
        with pytest.raises(ZeroDivisionError):
            await threads.run(netns, lambda: 1 // 0)
        assert await threads.run(netns, here) == netns.id


async def test_thread_that_cannot_get_back(lab: Lab) -> None:
    """A thread that cannot return to its netns ends, and another takes its place."""
    threads = NetnsThreads(size=1)
    with Netns.open(lab.add_pod("a").path) as netns:
        stuck = await threads.run(netns, give_up_all_capabilities)
        await eventually(lambda: stuck not in os.listdir("/proc/self/task"))
        assert await threads.run(netns, here) == netns.id
        with Netns.current() as own:
            assert await threads.run(own, here) == here()
    threads.close()


async def test_cancelled_caller(lab: Lab, threads: NetnsThreads) -> None:
    """A caller that is cancelled may close its netns while the job still runs in it."""
    before = open_descriptors()
    started, finish = threading.Event(), threading.Event()
    seen: list[NetnsId] = []

    def job() -> None:
        started.set()
        finish.wait(PATIENCE)
        seen.append(here())

    netns = Netns.open(lab.add_pod("a").path)
    caller = asyncio.create_task(threads.run(netns, job))
    await eventually(started.is_set)
    caller.cancel()
    netns.close()
    finish.set()
    await eventually(lambda: seen == [netns.id])
    await eventually(lambda: open_descriptors() == before)
    assert caller.cancelled()


async def test_closed_pool_has_finished(lab: Lab) -> None:
    """Closing waits for what runs, refuses what has not begun, and leaves nothing behind."""
    before = open_descriptors()
    threads = NetnsThreads()
    begun, done = threading.Event(), threading.Event()

    def job() -> None:
        begun.set()
        done.wait(PATIENCE)

    with Netns.open(lab.add_pod("a").path) as netns:
        running = asyncio.create_task(threads.run(netns, job))
        await eventually(begun.is_set)
        waiting = asyncio.create_task(threads.run(netns, here))
        await asyncio.sleep(0)
        threading.Timer(0.05, done.set).start()
        threads.close()
        assert done.is_set()
        assert not any(thread.name == "netns" for thread in threading.enumerate())
        await running
        with pytest.raises(OSError, match="stops"):
            await waiting
    await eventually(lambda: open_descriptors() == before)
