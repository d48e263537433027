"""Starting threads on a machine that may have none left.

Processes and threads share the kernel's numbers, and a single pod can use them all up. Python
says so with a ``RuntimeError``, which nobody expects of a call to the kernel. Here it is an
``OSError`` like any other shortage, for which callers try again later.
"""

import errno
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def start_thread(thread: threading.Thread) -> None:
    """Start `thread`. Raises ``OSError`` (EAGAIN) where the machine has no thread left."""
    try:
        thread.start()
    except RuntimeError as error:
        raise OSError(errno.EAGAIN, "the machine has no thread left") from error


class ThreadPool(ThreadPoolExecutor):
    """A pool for the event loop's default; `submit` raises ``OSError`` as `start_thread` does."""

    def submit(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> "Future[T]":
        """See ``concurrent.futures.Executor``; a call that is refused is never made later."""
        refused = False

        def call() -> T:
            if refused:
                raise OSError(errno.EAGAIN, "was refused")
            return function(*args, **kwargs)

        try:
            return super().submit(call)
        except RuntimeError as error:
            refused = True  # the call is in the pool's queue already
            raise OSError(errno.EAGAIN, "the machine has no thread left") from error
