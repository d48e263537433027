"""Opening sockets in a pod from outside of it."""

import asyncio
import threading

import pytest

from nodeagent.netns.threads import NetnsThreads
from tests.descriptors import open_descriptors
from tests.eventually import PATIENCE
from tests.ztunnel_stub.harness import eventually
from tests.ztunnel_stub.pods import Pod
from ztunnel_stub.sockets import PodSockets


async def test_what_is_opened_for_a_caller_that_left_is_closed(pod: Pod) -> None:
    """A cancelled task's listeners do not stay open with nobody to accept."""
    threads = NetnsThreads(1)
    busy, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        busy.set()
        go_on.wait(PATIENCE)

    try:
        holding = asyncio.create_task(threads.run(pod.netns, hold))
        await eventually(busy.is_set)
        before = open_descriptors()
        listening = asyncio.create_task(PodSockets(pod.netns, threads).listen())
        await eventually(lambda: open_descriptors() != before)
        listening.cancel()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await listening
        await holding
        assert pod.shell("ss -Hltun") == ""
    finally:
        threads.close()
