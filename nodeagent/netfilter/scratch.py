"""A netns that exists for one call, to find out what the kernel makes of given rules.

What the kernel has after rules were written is not predicted but tried: written and read in
a netns in which nobody else has anything. The netns ends with its only thread.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from nodeagent.linux import syscalls as kernel
from nodeagent.linux.thread_start import start_thread
from nodeagent.netfilter.errors import wrap_oserror

T = TypeVar("T")


def in_scratch_netns(function: Callable[[], T]) -> T:
    """Call `function` in a new thread with a netns of its own, and return its result.

    Raises `RulesError` where no netns can be made, and whatever `function` raises.
    """
    result: Future[T] = Future()

    def work() -> None:
        try:
            with wrap_oserror("make a network namespace for comparison"):
                kernel.unshare(kernel.CLONE_NEWNET)
            result.set_result(function())
        except Exception as error:  # noqa: BLE001 - raised again in the caller
            result.set_exception(error)

    thread = threading.Thread(target=work, name="scratch-netns")
    with wrap_oserror("start a thread"):
        start_thread(thread)
    thread.join()
    return result.result()
