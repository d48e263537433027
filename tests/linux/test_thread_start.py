"""A machine on which no thread can be started, as under a pod that has used all numbers up.

`threading.Thread.start` raises what Python raises there. To use the numbers up in earnest
would harm whatever else runs on the machine.
"""

import asyncio
import contextlib
import errno
import threading
from collections.abc import Callable, Iterator

import pytest

from nodeagent.linux import syscalls as kernel
from nodeagent.linux.thread_start import ThreadPool, start_thread
from nodeagent.mesh.errors import RetryError
from nodeagent.netfilter.errors import RulesError
from nodeagent.netfilter.libnftables import Library
from nodeagent.netfilter.scratch import in_scratch_netns
from nodeagent.netns.netns import Netns
from nodeagent.netns.procfs import Processes
from nodeagent.netns.threads import NetnsThreads
from tests.descriptors import open_descriptors
from tests.eventually import PATIENCE, eventually
from tests.lab.pod import call_in_thread

Allow = Callable[[], None]


@pytest.fixture
def allow(monkeypatch: pytest.MonkeyPatch) -> Iterator[Allow]:
    """No thread can be started until this is called."""
    start = threading.Thread.start
    allowed = threading.Event()

    def refuse(thread: threading.Thread) -> None:
        if not allowed.is_set():
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    yield allowed.set
    allowed.set()


@pytest.mark.usefixtures("allow")
def test_it_is_a_shortage() -> None:
    """It is the errno of a shortage, whoever starts the thread."""
    with pytest.raises(OSError, match="no thread left") as caught:
        start_thread(threading.Thread(target=int))
    assert caught.value.errno == errno.EAGAIN
    with pytest.raises(RulesError, match="cannot start a thread: EAGAIN"):
        in_scratch_netns(int)
    with pytest.raises(RulesError, match="cannot start a thread: EAGAIN"):
        Library()


async def test_the_netns_is_entered_later(allow: Allow) -> None:
    """A refused job leaves its turn, its place and its descriptor: the next one has them."""
    with Netns.current() as own, contextlib.closing(NetnsThreads(1)) as threads:
        before = open_descriptors()
        for _ in range(3):
            with pytest.raises(OSError, match="no thread left"):
                await asyncio.wait_for(threads.run(own, int), PATIENCE)
        assert open_descriptors() == before
        allow()
        assert await asyncio.wait_for(threads.run(own, int), PATIENCE) == 0


async def test_a_thread_that_is_there_does_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is a thread, a job that cannot have another waits for it."""

    def refuse(_: threading.Thread) -> None:
        refused.set()
        raise RuntimeError("can't start new thread")

    def elsewhere() -> Netns:
        kernel.unshare(kernel.CLONE_NEWNET)
        return Netns.current()

    begun, finish, refused = threading.Event(), threading.Event(), threading.Event()

    def wait() -> None:
        begun.set()
        finish.wait(PATIENCE)

    with (
        Netns.current() as first,
        call_in_thread(elsewhere) as second,
        contextlib.closing(NetnsThreads(2)) as threads,
    ):
        waiting = asyncio.create_task(threads.run(first, wait))
        await eventually(begun.is_set)
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", refuse)
            late = asyncio.create_task(threads.run(second, int))
            await eventually(refused.is_set)
        assert not late.done()
        finish.set()
        await waiting
        assert await asyncio.wait_for(late, PATIENCE) == 0


async def test_the_pool_of_the_loop(allow: Allow) -> None:
    """A call that was refused is never made, also once there is a thread."""
    made: list[str] = []
    asyncio.get_running_loop().set_default_executor(ThreadPool())
    with pytest.raises(OSError, match="no thread left"):
        await asyncio.to_thread(made.append, "refused")
    with pytest.raises(RetryError, match="no thread can be started"):
        await Processes("").paths("uid")
    allow()
    await asyncio.to_thread(made.append, "later")
    assert made == ["later"]
