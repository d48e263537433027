"""Changes in a folder, as the kernel tells them (inotify).

The folder is watched together with the links and directories that its path leads through,
because a change of one of them can put another folder at the path.
"""

import contextlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

from asyncinotify import Event, Inotify, Mask

from nodeagent.linux.links import Followed, follow

_CHANGES = (
    Mask.CLOSE_WRITE | Mask.MOVED_TO | Mask.MOVED_FROM | Mask.DELETE | Mask.CREATE | Mask.ATTRIB
)
_TURNED = Mask.MOVED_TO | Mask.MOVED_FROM | Mask.DELETE | Mask.CREATE
_GONE = Mask.DELETE_SELF | Mask.MOVE_SELF
_LOST = Mask.DELETE_SELF | Mask.MOVE_SELF | Mask.IGNORED | Mask.UNMOUNT
_BATCH = 4096
"""Notifications that are taken together at the most, so that a flood of them is told in parts."""


class FolderLostError(OSError):
    """The folder is not at its path any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What has changed."""

    names: frozenset[str] = frozenset()
    deleted: frozenset[str] = frozenset()
    """Those of `names` that were deleted: true even where the folder is gone as well."""
    everywhere: bool = False
    """Whether any other file of the folder may have changed too."""


class FolderWatch:
    """Watches one folder until the end of its ``with`` block.

    The folder is lost when a link that its path leads through points elsewhere, or a
    directory above is moved.

    The watch keeps no descriptor of the folder open: while any is open, the kernel does not
    tell of the folder's deletion.
    """

    def __init__(self, path: str, root: str = "/") -> None:
        """Start watching. Links are followed below `root`, where the host's root is.

        Raises ``OSError`` where there is no folder, or no watch left.
        """
        self._path, self._root = path, root
        self._inotify = Inotify(sync_timeout=0)
        self._lost = False
        self._turning: set[tuple[int, str]] = set()
        try:
            followed = follow(path, root)
            self._watch_way(followed)
            with _opened(followed.path) as folder:
                self._identity = _identity(folder)
                self._folder = self._add(f"/proc/self/fd/{folder}", _CHANGES | _GONE)
            if follow(path, root) != followed:
                raise FolderLostError("a link on the way to the folder has turned")
        except OSError:
            self.close()
            raise

    def _watch_way(self, followed: Followed) -> None:
        for directory in followed.directories:
            self._add_if_allowed(directory, _GONE)
        for directory, name in followed.links:
            if (number := self._add_if_allowed(directory, _TURNED | _GONE)) is not None:
                self._turning.add((number, name))

    def _add_if_allowed(self, directory: str, mask: Mask) -> int | None:
        # A directory that may be passed but not read cannot be watched.
        with contextlib.suppress(PermissionError):
            return self._add(directory, mask)
        return None

    def _add(self, path: str, mask: Mask) -> int:
        # MASK_ADD: the path may lead through one directory several times.
        return self._inotify.add_watch(path, mask | Mask.MASK_ADD).wd

    async def changed(self) -> Change:
        """Wait for a change; what happened meanwhile is taken together.

        Raises ``FolderLostError`` once the folder was moved or deleted, after all
        that happened before was returned.
        """
        while not self._lost:
            events = [await self._inotify.get()]
            while len(events) < _BATCH and (event := self._inotify.sync_get()) is not None:
                events.append(event)
            lost = next((n for n, event in enumerate(events) if self._leads_away(event)), None)
            if lost is not None:
                # What happens later in the folder that was lost does not count.
                self._lost, events = True, events[:lost]
            # Of the directories on the way only the loss counts. An event without a watch says that
            # notifications were lost, and counts for all files.
            events = [e for e in events if e.watch is None or e.watch.wd == self._folder]
            last = {str(event.name): event.mask for event in events if self._is_news(event)}
            change = Change(
                names=frozenset(last),
                deleted=frozenset(name for name, mask in last.items() if mask & Mask.DELETE),
                everywhere=any(map(_concerns_all, events)),
            )
            if change.names or change.everywhere:
                return change
        raise FolderLostError("the folder was moved or deleted")

    @contextlib.contextmanager
    def opened(self) -> Iterator[int]:
        """The folder's descriptor. Raises ``OSError`` where it is not at its path."""
        with _opened(follow(self._path, self._root).path) as folder:
            if _identity(folder) != self._identity:
                raise FolderLostError("the folder was replaced")
            yield folder

    def close(self) -> None:
        """Stop watching."""
        self._inotify.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _leads_away(self, event: Event) -> bool:
        if event.mask & _LOST:
            return True
        step = (event.watch.wd if event.watch else -1, str(event.name))
        return bool(event.mask & _TURNED) and step in self._turning

    def _is_news(self, event: Event) -> bool:
        if event.name is None:
            return False
        if not event.mask & Mask.CREATE:
            return True
        # A new file is reported when it was written; only a link is complete from the start.
        try:
            status = os.lstat(os.path.join(self._path, event.name))
        except OSError:
            return False
        return stat.S_ISLNK(status.st_mode) or status.st_nlink > 1


def _concerns_all(event: Event) -> bool:
    # A renamed file has two names to look at, the old and the new. Kubelet's swap of a
    # ConfigMap volume (`..data`) is a rename too.
    return bool(event.mask & (Mask.Q_OVERFLOW | Mask.MOVED_FROM))


@contextlib.contextmanager
def _opened(path: str) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _identity(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino
