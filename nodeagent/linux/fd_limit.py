"""The limit of open files, of which each pod takes some: its netns, and sockets that watch it."""

import fcntl
import os
import resource

from nodeagent.linux import syscalls as kernel


def raise_nofile_limit(expected: int) -> None:
    """Raise the soft limit to the hard one, and the descriptor table to `expected` entries.

    The usual soft limit of 1,024 is low. The table grows by itself, but once there are
    threads each time costs an RCU grace period of the kernel, some milliseconds. So the
    table is made large before the first thread. Raises ``OSError``.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with open(os.devnull, "rb") as some:
        os.close(fcntl.fcntl(some, fcntl.F_DUPFD_CLOEXEC, min(hard, expected) - 1))


def leave_table() -> None:
    """Give the calling thread a descriptor table of its own, with descriptors 0 to 2 only.

    Descriptors that the thread opens from now on have low numbers, and other threads do not
    have them. The thread must not use descriptors from before: in its own table they are
    closed. Raises ``OSError``.
    """
    kernel.unshare(kernel.CLONE_FILES)
    highest = max(map(int, os.listdir("/proc/thread-self/fd")))
    os.closerange(3, highest + 1)
