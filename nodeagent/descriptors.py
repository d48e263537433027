"""Room for file descriptors: one for each pod's namespace, and more for what watches it."""

import contextlib
import fcntl
import os
import resource

_SELECTABLE = 1024
"""FD_SETSIZE. libnftables waits with select(); given a higher number, glibc ends the process."""


def make_room(expected: int) -> None:
    """Raise the soft limit to the hard one, and let the table hold `expected` now.

    The usual limit of 1,024 is low. And once there are threads, the kernel waits an
    RCU grace period (milliseconds) each time that the table has to grow.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with open(os.devnull, "rb") as some:
        os.close(fcntl.fcntl(some, fcntl.F_DUPFD_CLOEXEC, min(hard, expected) - 1))


def out_of_the_way(fd: int) -> int:
    """Move `fd`, one of many, to where it leaves the low numbers to libnftables' own sockets.

    Returns the new number; the same where the limit allows no higher one.
    """
    with contextlib.suppress(OSError):
        moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _SELECTABLE)
        os.close(fd)
        return moved
    return fd
