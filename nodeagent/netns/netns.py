"""A network namespace and the one descriptor that holds it."""

import os
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from nodeagent.linux import syscalls as kernel


@dataclass(frozen=True, slots=True)
class NetnsId:
    """What tells two network namespaces apart, whatever path led to them (L10)."""

    device: int
    inode: int

    @classmethod
    def of_fd(cls, fd: int) -> Self:
        """Identity of the namespace behind an open descriptor."""
        status = os.fstat(fd)
        return cls(status.st_dev, status.st_ino)

    @classmethod
    def of_path(cls, path: str) -> Self:
        """Identity of the namespace at `path`. Raises ``OSError``."""
        status = os.stat(path)
        return cls(status.st_dev, status.st_ino)

    def __str__(self) -> str:
        return f"net:[{self.inode}]"


class NotANetnsError(OSError):
    """The file opens, but it is no network namespace."""


class Netns:
    """Owns one descriptor of a network namespace until `close`.

    Borrowers use `fd` while the owner is alive and never close it.
    """

    __slots__ = ("__weakref__", "_fd", "id")

    def __init__(self, fd: int) -> None:
        """Take over `fd`; closed here if it turns out to be something else."""
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
        """Open the namespace at `path`.

        Raises ``NotANetnsError`` for any other file, ``OSError``
        where it cannot be opened. A FIFO or device in that place is not waited
        for: the path may come from a tenant.
        """
        return cls(_opened(path))

    @classmethod
    def current(cls) -> Self:
        """Open the calling thread's own namespace."""
        return cls(_opened("/proc/thread-self/ns/net"))

    @property
    def fd(self) -> int:
        """The descriptor, on loan. Raises ``ValueError`` once closed."""
        if self._fd < 0:
            raise ValueError(f"{self.id} is closed")
        return self._fd

    @property
    def closed(self) -> bool:
        """Whether the descriptor was given back."""
        return self._fd < 0

    def close(self) -> None:
        """Let go of the namespace. Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Netns {self.id}{' closed' if self.closed else ''}>"


def _opened(path: str) -> int:
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
