"""What holds up the event loop is found and named (L34)."""

import asyncio
import os
import threading
import time
from collections.abc import MutableMapping
from typing import Any

import structlog

from nodeagent import loop_watch
from nodeagent.loop_watch import watching_loop
from tests.eventually import PATIENCE

HELD = 0.005
Logs = list[MutableMapping[str, Any]]


def compute_for_long(logs: Logs) -> None:
    """Not let go of the loop before it was told of."""
    wait_for("compute_for_long ", logs)


def wait_for(name: str, logs: Logs) -> None:
    deadline = time.monotonic() + PATIENCE
    while not told(name, logs):
        assert time.monotonic() < deadline
        time.sleep(0.0005)


def told(name: str, logs: Logs) -> Logs:
    """The lines about `name`; on a busy machine others hold the loop up as well."""
    return [line for line in logs if name in line["at"]]


def test_task_and_place_are_named() -> None:
    """The line has the task's name, and the function, and for how long."""

    async def main(logs: Logs) -> None:
        with watching_loop(HELD):
            task = asyncio.create_task(work(logs), name="pod shop/web")
            await task

    async def work(logs: Logs) -> None:
        compute_for_long(logs)

    with structlog.testing.capture_logs() as logs:
        loop_watch.run(main(logs))
    (line,) = told("compute_for_long", logs)
    assert line["task"] == "pod shop/web"
    assert "wait_for (tests/test_loop_watch.py:" in line["at"]
    assert "compute_for_long (" in line["at"]
    assert line["seconds"] >= HELD
    assert line["log_level"] == "warning"


def test_callback_is_named() -> None:
    """What no task does is told of as well."""

    async def main(logs: Logs) -> None:
        with watching_loop(HELD):
            done = asyncio.Event()

            def callback() -> None:
                compute_for_long(logs)
                done.set()

            asyncio.get_running_loop().call_soon(callback)
            await done.wait()

    with structlog.testing.capture_logs() as logs:
        loop_watch.run(main(logs))
    (line,) = told("compute_for_long", logs)
    assert line["task"] == "a callback"


def test_same_function_is_told_of_once() -> None:
    """What goes on and on does not fill the log; another function is named beside it."""

    async def main(logs: Logs) -> None:
        with watching_loop(HELD):
            for _ in range(5):
                first(logs)
                await asyncio.sleep(0)
            second(logs)

    def first(logs: Logs) -> None:
        time.sleep(5 * HELD)
        deadline = time.monotonic() + PATIENCE
        while not told(".first ", logs):
            assert time.monotonic() < deadline

    def second(logs: Logs) -> None:
        deadline = time.monotonic() + PATIENCE
        while not told(".second ", logs):
            assert time.monotonic() < deadline

    with structlog.testing.capture_logs() as logs:
        loop_watch.run(main(logs))
    innermost = [line["at"].partition(" (")[0] for line in logs]
    assert len(innermost) == len(set(innermost))


def test_loop_that_waits_costs_nothing() -> None:
    """While the loop has nothing to do the thread sleeps, and does not look again and again."""

    async def main() -> None:
        with watching_loop(HELD):
            (thread,) = (each for each in threading.enumerate() if each.name == "loop watch")
            assert thread.native_id is not None
            await asyncio.to_thread(sleeps, thread.native_id)
        assert not thread.is_alive()

    def sleeps(thread: int) -> None:
        before, now = -1, wake_ups(thread)
        deadline = time.monotonic() + PATIENCE
        while before != now:
            assert time.monotonic() < deadline
            time.sleep(20 * HELD)
            before, now = now, wake_ups(thread)

    loop_watch.run(main())


def wake_ups(thread: int) -> int:
    with open(f"/proc/{os.getpid()}/task/{thread}/status", encoding="ascii") as status:
        return sum(int(line.split()[1]) for line in status if "_ctxt_switches" in line)


def test_another_loop_is_not_watched() -> None:
    """Whoever runs the agent in a loop of their own loses the watch, and nothing else."""

    async def main() -> None:
        with watching_loop(HELD):
            pass

    asyncio.run(main())


def test_turns_are_counted_by_their_length() -> None:
    """A function that holds the loop up is one turn, in the class of its length."""

    async def work() -> loop_watch.Turns:
        await asyncio.sleep(0)
        time.sleep(0.3)  # noqa: ASYNC251 - holds up the loop, as what is counted does
        await asyncio.sleep(0.001)
        return loop_watch.turns()

    turns = loop_watch.run(work())
    assert sum(turns.counts[-3:]) >= 1
    assert turns.seconds >= 0.3
