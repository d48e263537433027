"""A network namespace (netns), held open by one file descriptor."""

import os
from dataclasses import dataclass
from typing import Self

from nodeagent.linux import syscalls as kernel


@dataclass(frozen=True, slots=True)
class NetnsId:
    """Device and inode: the same for two paths that lead to the same netns (L10)."""

    device: int
    inode: int

    @classmethod
    def of_fd(cls, fd: int) -> Self:
        """The identity of the netns behind an open descriptor."""
        status = os.fstat(fd)
        return cls(status.st_dev, status.st_ino)

    @classmethod
    def of_path(cls, path: str) -> Self:
        """The identity of the netns at `path`. Raises ``OSError``."""
        status = os.stat(path)
        return cls(status.st_dev, status.st_ino)

    def __str__(self) -> str:
        return f"net:[{self.inode}]"


class NotANetnsError(OSError):
    """The file can be opened, but is no netns."""


class Netns:
    """Owns one descriptor of a netns until `close`.

    Borrowers use `fd` while the owner is alive and never close it.
    """

    __slots__ = ("__weakref__", "_fd", "id")

    def __init__(self, fd: int) -> None:
        """Take over `fd`. Closes it and raises ``NotANetnsError`` if it is no netns."""
        try:
            if kernel.namespace_type(fd) != kernel.CLONE_NEWNET:
                raise NotANetnsError("a namespace, but not a network namespace")
        except OSError as error:
            os.close(fd)
            if isinstance(error, NotANetnsError):
                raise
            raise NotANetnsError("not a network namespace") from error
        self._fd = fd
        self.id = NetnsId.of_fd(fd)

    @classmethod
    def open(cls, path: str) -> Self:
        """Open the netns at `path`.

        Raises ``NotANetnsError`` for any other file, ``OSError``
        where it cannot be opened. Does not wait for a FIFO or a device in that place,
        because the path may come from a tenant.
        """
        return cls(_opened(path))

    @classmethod
    def current(cls) -> Self:
        """Open the calling thread's own netns."""
        return cls(_opened("/proc/thread-self/ns/net"))

    @property
    def fd(self) -> int:
        """The descriptor, on loan. Raises ``ValueError`` once closed."""
        if self._fd < 0:
            raise ValueError(f"{self.id} is closed")
        return self._fd

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._fd < 0

    def close(self) -> None:
        """Close the descriptor. Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Netns {self.id}{' closed' if self.closed else ''}>"


def _opened(path: str) -> int:
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
