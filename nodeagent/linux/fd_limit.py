"""Room for file descriptors: one for each pod's namespace, and more for what watches it."""

import fcntl
import os
import resource

from nodeagent.linux import syscalls as kernel


def raise_nofile_limit(expected: int) -> None:
    """Raise the soft limit to the hard one, and let the table hold `expected` now.

    The usual limit of 1,024 is low. And once there are threads, the kernel waits an
    RCU grace period (milliseconds) each time that the table has to grow.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with open(os.devnull, "rb") as some:
        os.close(fcntl.fcntl(some, fcntl.F_DUPFD_CLOEXEC, min(hard, expected) - 1))


def leave_table() -> None:
    """Give the calling thread a descriptor table of its own, empty but for the standard three.

    What the thread opens from now on has low numbers, and no other thread sees it. The
    thread must not touch descriptors of before, whose numbers mean nothing to it any
    more. Raises ``OSError``.
    """
    kernel.unshare(kernel.CLONE_FILES)
    highest = max(map(int, os.listdir("/proc/thread-self/fd")))
    os.closerange(3, highest + 1)
