"""The CNI configuration directory on disk: nobody who reads it ever sees half a file."""

import contextlib
import errno
import os
import secrets
import stat
import time
from collections.abc import Iterator

from nodeagent.cni.conflist import MAX_SIZE
from nodeagent.cni.plan import Changes, Directory, Files

_SUFFIXES = (".conf", ".conflist")
_TEMPORARY = ".nodeagent-tmp"
"""Ends our temporary names: no runtime reads such a file."""
_ABANDONED = 60.0
"""Seconds; a temporary file that is older was left by an agent that was killed."""


class MovedError(Exception):
    """A file is not any more what was read: somebody has written it meanwhile."""


def read(path: str, suffixes: tuple[str, ...] = _SUFFIXES) -> Directory:
    """Read the directory's configurations. Raises ``OSError`` where it cannot be listed.

    A file with two names through a symbolic link counts once, under the name that
    runtimes come to first. A link out of the directory is unreadable: in a container
    it leads elsewhere than on the host.
    """
    files: dict[str, bytes] = {}
    unreadable: dict[str, str] = {}
    seen: set[str] = set()
    for name in sorted(n for n in os.listdir(path) if n.endswith(suffixes)):
        try:
            real = _real(path, name)
            if real in seen:
                continue
            data = content(real)
        except FileNotFoundError:
            continue  # gone meanwhile, or a link to nothing: nothing for runtimes either
        except IsADirectoryError:
            continue  # runtimes pass it over too
        except OSError as error:
            unreadable[name] = error.strerror or str(error)
            continue
        seen.add(real)
        files[name] = data
    return Directory(files=files, unreadable=unreadable)


def names(path: str) -> list[str]:
    """All names in the directory, of other files too. Raises ``OSError``."""
    return sorted(os.listdir(path))


def apply(path: str, changes: Changes, before: Files) -> None:
    """Make `changes` where the files are still as in `before`.

    What is new is there before anything goes. Raises ``MovedError``, or ``OSError``
    that names the file; what was not reached is as it was.
    """
    for name, data in sorted(changes.items()):
        if data is not None:
            with _named(os.path.join(path, name), "written"):
                real = _real(path, name)
            _require_unmoved(real, before.get(name))
            replace(real, data, like=_model(path, name))
    for name, data in sorted(changes.items()):
        if data is None and name in before:
            _require_unmoved(os.path.join(path, name), before[name])
            with _named(os.path.join(path, name), "removed"):
                os.unlink(os.path.join(path, name))


def content(path: str) -> bytes:
    """What is in a file, to one byte more than is ever taken. Raises ``OSError``."""
    # A FIFO is not waited for.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, "is a directory")
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "is not a regular file")
        with open(fd, "rb", closefd=False) as file:
            return file.read(MAX_SIZE + 1)
    finally:
        os.close(fd)


def replace(path: str, data: bytes, *, like: str | None, mode: int = 0o600) -> None:
    """Write a file at one stroke; it is on disk before it has its name.

    Mode and owner are those of the file `like`, otherwise `mode` and ours. Raises
    ``OSError`` that names the file, which is then as it was.
    """
    temporary = f"{path}.{secrets.token_hex(4)}{_TEMPORARY}"
    with _named(path, "written"):
        try:
            _write(temporary, data, like, mode)
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


def _real(path: str, name: str) -> str:
    real = os.path.realpath(os.path.join(path, name))
    if os.path.dirname(real) != os.path.realpath(path):
        raise OSError(errno.EXDEV, "is a link that leads out of the directory")
    return real


def _model(path: str, name: str) -> str | None:
    """Whose mode and owner a file takes: its own, or those of what it is made from."""
    other = name.removesuffix("list") if name.endswith(".conflist") else name + "list"
    for known in (name, other):
        real = os.path.join(path, known)
        if os.path.exists(real):
            return real
    return None


def _require_unmoved(path: str, before: bytes | None) -> None:
    now = None
    with _named(path, "read"), contextlib.suppress(FileNotFoundError):
        now = content(path)
    if now != before:
        raise MovedError(f"{path} was written by somebody else meanwhile")


def _write(path: str, data: bytes, like: str | None, mode: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with open(fd, "wb", buffering=0) as file:
        if like is not None:
            model = os.stat(like)
            os.fchown(fd, model.st_uid, model.st_gid)
            mode = stat.S_IMODE(model.st_mode)
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


@contextlib.contextmanager
def _named(path: str, what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"{path} cannot be {what}: {error.strerror}") from error
