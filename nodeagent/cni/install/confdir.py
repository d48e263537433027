"""The CNI directories on disk: read as a value, and written so that nobody sees half a file.

`read` makes a `Directory` of whatever is there. `apply` writes changes to it, each only where
the file is still what was read, under a temporary name that is then renamed.
"""

import contextlib
import errno
import os
import secrets
import stat
import time
from collections.abc import Iterator

from nodeagent.cni.install.conflist import MAX_SIZE
from nodeagent.cni.install.directory import Changes, Directory, Files

SUFFIXES = (".conf", ".conflist", ".json")
"""Of the files that runtimes count: containerd, CRI-O and cri-dockerd ask libcni for these."""
MOST = 1000
"""Configurations in the directory; with more it is not read at all. A node has a handful."""
_TEMPORARY = ".nodeagent-tmp"
"""Ends our temporary names: no runtime reads such a file."""
_ABANDONED = 60.0
"""Seconds; a temporary file that is older was left by an agent that was killed."""


_NOT_FOR_RUNTIMES = (errno.ENOENT, errno.ELOOP, errno.EISDIR)
"""A link to nothing, to itself, or to a directory."""


class MovedError(Exception):
    """Somebody has written a file since it was read."""


def read(path: str, suffixes: tuple[str, ...] = SUFFIXES) -> Directory:
    """Read the directory's configurations, whatever there is under their names.

    A file with two names through a symbolic link counts once, under the name that
    runtimes come to first. A link out of the directory is unreadable: in a container
    it leads elsewhere than on the host. Raises ``OSError`` where the directory cannot
    be listed, or holds more than ``MOST`` of them.
    """
    files: dict[str, bytes] = {}
    unreadable: dict[str, str] = {}
    broken: dict[str, str] = {}
    seen: set[str] = set()
    for name in _counted(path, suffixes):
        try:
            real = _real(path, name)
            if real in seen:
                continue
            data = content(real)
        except OSError as error:
            # What has gone meanwhile is nothing to anybody.
            if error.errno in _NOT_FOR_RUNTIMES:
                if os.path.lexists(os.path.join(path, name)):
                    broken[name] = error.strerror or str(error)
            else:
                unreadable[name] = error.strerror or str(error)
            continue
        seen.add(real)
        files[name] = data
    return Directory(files=files, unreadable=unreadable, broken=broken)


def names(path: str) -> list[str]:
    """All names in the directory, of other files too. Raises ``OSError``."""
    return sorted(os.listdir(path))


def apply(path: str, changes: Changes, before: Files, *, least_mode: int = 0o600) -> None:
    """Make `changes` where the files are still as in `before`.

    `least_mode` is a new file's mode; the mode of any other file permits no less.
    New content is written before any file is removed. Raises ``MovedError``, or ``OSError``
    that names the file; what was not reached is as it was.
    """
    for name, data in sorted(changes.items()):
        if data is not None:
            with _named(os.path.join(path, name), "written"):
                real = _real(path, name)
            _require_unmoved(real, before.get(name))
            replace(real, data, like=_model(path, name), least_mode=least_mode)
    for name, data in sorted(changes.items()):
        if data is None and name in before:
            _require_unmoved(os.path.join(path, name), before[name])
            with _named(os.path.join(path, name), "removed"):
                os.unlink(os.path.join(path, name))


def content(path: str) -> bytes:
    """What is in a file, up to ``MAX_SIZE`` and one byte more. Raises ``OSError``."""
    # Without O_NONBLOCK, opening a FIFO would wait for its writer.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, "a directory")
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "not a regular file")
        with open(fd, "rb", closefd=False) as file:
            return file.read(MAX_SIZE + 1)
    finally:
        os.close(fd)


def replace(path: str, data: bytes, *, like: str | None, least_mode: int = 0o600) -> None:
    """Write a file whole; its content is on disk before the file has its name.

    Mode and, where we may, owner are those of the file `like`, otherwise `least_mode` and ours.
    The mode permits no less than `least_mode`.
    Raises ``OSError`` that names the file, which is then as it was.
    """
    temporary = f"{path}.{secrets.token_hex(4)}{_TEMPORARY}"
    with _named(path, "written"):
        try:
            _write(temporary, data, like, least_mode)
            os.rename(temporary, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            raise
        _sync_directory(os.path.dirname(path))


def sweep(path: str) -> None:
    """Delete temporary files that an agent left when it was killed. Raises ``OSError``."""
    for name in os.listdir(path):
        if name.endswith(_TEMPORARY):
            abandoned = os.path.join(path, name)
            with contextlib.suppress(FileNotFoundError):
                if time.time() - os.lstat(abandoned).st_mtime > _ABANDONED:
                    os.unlink(abandoned)


def _counted(path: str, suffixes: tuple[str, ...]) -> list[str]:
    """Names of configurations in the order in which runtimes read them; directories are none."""
    found: list[str] = []
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.name.endswith(suffixes) and not entry.is_dir(follow_symlinks=False):
                found.append(entry.name)
            if len(found) > MOST:
                raise OSError(errno.E2BIG, f"{path} has more than {MOST} CNI configurations")
    return sorted(found)


def _real(path: str, name: str) -> str:
    real = os.path.realpath(os.path.join(path, name))
    if os.path.dirname(real) != os.path.realpath(path):
        raise OSError(errno.EXDEV, "a link that leads out of the directory")
    return real


def _model(path: str, name: str) -> str | None:
    """Whose mode and owner a file takes: its own, or those of what it is made from."""
    stem = os.path.join(path, name.rpartition(".")[0])
    for known in (os.path.join(path, name), *(stem + suffix for suffix in SUFFIXES)):
        if os.path.exists(known):
            return known
    return None


def _require_unmoved(path: str, before: bytes | None) -> None:
    now = None
    with _named(path, "read"), contextlib.suppress(FileNotFoundError):
        now = content(path)
    if now != before:
        raise MovedError(f"{path} was written by somebody else meanwhile")


def _write(path: str, data: bytes, like: str | None, least_mode: int) -> None:
    mode = least_mode
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with open(fd, "wb", buffering=0) as file:
        if like is not None:
            model = os.stat(like)
            # Without CAP_CHOWN the file stays ours: runtimes are root, and read it all the same.
            with contextlib.suppress(PermissionError):
                os.fchown(fd, model.st_uid, model.st_gid)
            mode |= stat.S_IMODE(model.st_mode)
        os.fchmod(fd, mode)
        rest = memoryview(data)
        while rest:
            rest = rest[file.write(rest) :]
        os.fsync(fd)


def _sync_directory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def whose(directory: str) -> str:
    """Who owns a directory that we may not use, and the remedy; '' if the owner is us."""
    try:
        status = os.stat(directory)
    except OSError:
        return ""
    if status.st_uid == os.geteuid():
        return ""
    return (
        f" ({directory} is user {status.st_uid}'s, mode {stat.S_IMODE(status.st_mode):04o}:"
        " the agent's container needs the capability DAC_OVERRIDE)"
    )


@contextlib.contextmanager
def _named(path: str, what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        owner = whose(os.path.dirname(path)) if isinstance(error, PermissionError) else ""
        reason = f"{path} cannot be {what}: {error.strerror}{owner}"
        raise OSError(error.errno, reason) from error
