"""Following the symbolic links of a path on the host, whose root is elsewhere for the agent."""

import errno
import os
from dataclasses import dataclass

_MOST = 40
"""Links that the kernel follows in one path, see path_resolution(7)."""


@dataclass(frozen=True, slots=True)
class Followed:
    """What a path leads to now, and through what."""

    path: str
    """The path without links; there need not be anything at it."""
    links: tuple[tuple[str, str], ...]
    """The links on the way: for each the directory, and the link's name in it."""
    directories: tuple[str, ...]
    """The directories on the way, without the last one."""


def follow(path: str, root: str = "/") -> Followed:
    """Follow the links of `path`, which is below `root`, where the host's own root is.

    An absolute link leads to a place below `root` too: k3s has one at
    ``/var/lib/rancher/k3s/data/current``. Raises ``OSError`` for too many links.
    """
    path = path if os.path.isabs(path) else os.path.join(os.getcwd(), path)
    root = os.path.normpath(root)
    links: list[tuple[str, str]] = []
    directories: list[str] = []
    here = root
    rest = _parts(path.removeprefix(root))
    while rest:
        name = rest.pop()
        if name == "..":
            here = here if here == root else os.path.dirname(here)
            continue
        try:
            target = os.readlink(os.path.join(here, name))
        except OSError:  # no link, or nothing at all
            directories.append(here)
            here = os.path.join(here, name)
            continue
        links.append((here, name))
        if len(links) > _MOST:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        if os.path.isabs(target):
            here = root
        rest += _parts(target)
    return Followed(here, tuple(links), tuple(dict.fromkeys(directories)))


def _parts(path: str) -> list[str]:
    """The names in a path, the last one first."""
    return [name for name in reversed(path.split("/")) if name not in ("", ".")]
