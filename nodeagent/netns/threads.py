"""Running code inside other network namespaces, in threads kept for it.

A network namespace belongs to a thread, so entering one is safe only in a
thread that nothing else uses, and only if the thread is certain to come back.
A thread that cannot return to its own namespace ends; nothing runs in it again.
"""

import asyncio
import contextlib
import os
import queue
import threading
from collections.abc import Callable
from typing import TypeVar

from nodeagent import kernel
from nodeagent.descriptors import out_of_the_way
from nodeagent.netns.namespace import NetworkNamespace

T = TypeVar("T")
_Job = Callable[[int], bool]


class NamespaceThreads:
    """A small pool of threads that enter a namespace, do one thing and return."""

    def __init__(self, size: int = 4) -> None:
        """Start `size` threads; they stay in the namespace of the caller.

        Four keep both cores of a small node busy while others wait for the
        kernel to finish a transaction.
        """
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._threads: set[threading.Thread] = set()
        for _ in range(size):
            self._start_thread()

    async def run(self, namespace: NetworkNamespace, function: Callable[[], T]) -> T:
        """Run `function` inside `namespace`; its result or exception is returned.

        The job has its own duplicate of the descriptor: the owner may close the
        namespace, or the caller be cancelled, while `function` still runs.
        Raises ``OSError`` if the namespace cannot be entered.
        """
        loop = asyncio.get_running_loop()
        result: asyncio.Future[T] = loop.create_future()
        target = out_of_the_way(os.dup(namespace.fd))

        def job(home: int) -> bool:
            try:
                value, error = _run_inside(target, function), None
            except BaseException as caught:  # noqa: BLE001 - handed to the caller, whatever it is
                value, error = None, caught
            returned = _returned_to(home)
            if not returned:
                _call(loop, self._replace, threading.current_thread())
            _call(loop, _settle, result, value, error)
            return returned

        self._jobs.put(job)
        return await result

    def close(self) -> None:
        """Let every thread finish what is queued, and wait for them."""
        for _ in self._threads:
            self._jobs.put(None)
        for thread in list(self._threads):
            thread.join()
        self._threads.clear()

    def _start_thread(self) -> None:
        # A new thread inherits its creator's namespace, so threads are started
        # by the owner's thread only, never by one that may be elsewhere.
        thread = threading.Thread(target=self._work, name="netns", daemon=True)
        self._threads.add(thread)
        thread.start()

    def _replace(self, lost: threading.Thread) -> None:
        self._threads.discard(lost)
        self._start_thread()

    def _work(self) -> None:
        with NetworkNamespace.current() as home:
            while (job := self._jobs.get()) is not None:
                if not job(home.fd):
                    return


def _run_inside(target: int, function: Callable[[], T]) -> T:
    try:
        kernel.setns(target, kernel.CLONE_NEWNET)
    finally:
        os.close(target)
    return function()


def _returned_to(home: int) -> bool:
    try:
        kernel.setns(home, kernel.CLONE_NEWNET)
    except OSError:
        return False
    return True


def _call(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *args: object) -> None:
    # RuntimeError: the loop ended while the job ran; nobody waits for it.
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(function, *args)


def _settle(result: "asyncio.Future[T]", value: T, error: BaseException | None) -> None:
    if result.done():
        return
    if error is None:
        result.set_result(value)
    else:
        result.set_exception(error)
