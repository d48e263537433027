"""System calls that Python 3.11 does not have.

Every function is one call, and raises ``OSError`` where the kernel refuses.
"""

import ctypes
import fcntl
import os

CLONE_FILES = 0x400
CLONE_NEWNET = 0x4000_0000
_NS_GET_NSTYPE = 0xB703  # linux/nsfs.h
_M_ARENA_MAX = -8  # malloc.h

_libc = ctypes.CDLL(None, use_errno=True)


def setns(fd: int, nstype: int) -> None:
    """Move the calling thread into the namespace behind `fd`."""
    if _libc.setns(fd, nstype) != 0:
        raise _error()


def unshare(flags: int) -> None:
    """Give the calling thread new namespaces, or a descriptor table, of its own."""
    if _libc.unshare(flags) != 0:
        raise _error()


def namespace_type(fd: int) -> int:
    """Return the ``CLONE_NEW…`` constant of the namespace behind `fd`.

    Raises ``OSError`` (ENOTTY) if `fd` is not a namespace.
    """
    return fcntl.ioctl(fd, _NS_GET_NSTYPE)


def ask_socket(fd: int, level: int, option: int, question: bytes) -> bytes:
    """Return ``getsockopt``'s answer, as long as `question`, which the kernel reads first.

    Python's own ``getsockopt`` cannot pass anything to the kernel.
    """
    buffer = ctypes.create_string_buffer(question, len(question))
    size = ctypes.c_uint32(len(question))
    if _libc.getsockopt(fd, level, option, buffer, ctypes.byref(size)) != 0:
        raise _error()
    return buffer.raw[: size.value]


def share_malloc_arena() -> None:
    """Have all threads allocate from one arena; to be called before the first thread.

    glibc gives each thread an arena of its own, which takes megabytes. The agent's threads
    wait for the kernel most of the time, so one arena does not slow them.
    """
    if hasattr(_libc, "mallopt"):  # musl has no arenas
        _libc.mallopt(_M_ARENA_MAX, 1)


def _error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))
