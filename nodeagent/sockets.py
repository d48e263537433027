"""Unix sockets that the agent listens on: private, and never somebody else's."""

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Iterator


@contextlib.contextmanager
def listening(path: str, kind: socket.SocketKind, *, setting: str) -> Iterator[socket.socket]:
    """Listen at `path`, mode 0600, non-blocking; the file goes at the end.

    A socket that an earlier agent left there is replaced; at the end, one that a
    newer agent has put in its place meanwhile stays. Raises ``OSError`` that names
    the path and the `setting` that moves it.
    """
    with socket.socket(socket.AF_UNIX, kind) as listener:
        try:
            os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
            _remove_stale(path)
            # The mode of the unbound socket becomes its file's: it is never open to others.
            os.fchmod(listener.fileno(), 0o600)
            listener.bind(path)
            own = os.lstat(path)
            listener.listen()
            listener.setblocking(False)
        except OSError as error:
            raise OSError(
                error.errno, f"cannot listen at {path} ({setting}): {error.strerror}"
            ) from error
        try:
            yield listener
        finally:
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.lstat(path), own):
                    os.unlink(path)


def _remove_stale(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise FileExistsError(errno.EEXIST, "something that is not a socket is in its place")
        os.unlink(path)
