"""``python -m tests.tools.demo``: takes the demo into namespaces of its own, and out again.

The demo runs as the first process of a PID namespace: when it ends, however that
comes about, the kernel ends all that it has started, and with that go the mounts
and the network namespaces.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
from types import FrameType

_PACKAGES = {
    "ip": "iproute2",
    "mount": "mount",
    "setpriv": "util-linux",
    "unshare": "util-linux",
}
_USER = ("--user", "--map-root-user")
_OTHERS = ("--net", "--mount", "--pid", "--fork", "--kill-child")
_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_GRACE = 10.0
"""Seconds that the demo has to clean up once it was told to stop."""


class StoppedError(Exception):
    """A signal tells the demo to end."""

    def __init__(self, number: int) -> None:
        self.number = number


def main() -> int:
    """Run the demo; its exit status, or 128 and the number of the signal that ended it."""
    # Until there is something to clean up.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # Where Debian keeps ip, out of an ordinary user's way.
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    try:
        command = _command()
    except OSError as error:
        print(f"tests.tools.demo: {error}", file=sys.stderr)
        return 1
    # The demo's standard input never says anything; it ends when the demo is to end.
    reading, lifeline = os.pipe()
    # In a session of its own it hears of Ctrl-C only from here.
    with subprocess.Popen(command, stdin=reading, start_new_session=True) as demo:
        os.close(reading)
        try:
            for number in _STOPPING:
                signal.signal(number, _stop)
            return demo.wait()
        except StoppedError as stopped:
            os.close(lifeline)
            with contextlib.suppress(subprocess.TimeoutExpired):
                demo.wait(_GRACE)
            demo.kill()
            return 128 + stopped.number


def _stop(stopping: int, _: FrameType | None) -> None:
    for number in _STOPPING:
        signal.signal(number, signal.SIG_IGN)
    raise StoppedError(stopping)


def _command() -> list[str]:
    """Return how the demo is started here. Raises ``OSError`` with the remedy."""
    missing = {package for program, package in _PACKAGES.items() if not shutil.which(program)}
    try:
        ctypes.CDLL("libnftables.so.1")
    except OSError:
        missing.add("libnftables1")
    if missing:
        names = " ".join(sorted(missing))
        raise FileNotFoundError(f"missing: {names}; install with: sudo apt-get install -y {names}")
    refused = ""
    # Root can do without a user namespace where the machine allows none.
    for user in (_USER, ()) if os.geteuid() == 0 else (_USER,):
        program = ["setpriv", "--pdeathsig", "KILL", "unshare", *user, *_OTHERS]
        attempt = subprocess.run([*program, "true"], capture_output=True, text=True, check=False)
        if attempt.returncode == 0:
            return [*program, sys.executable, "-m", "tests.tools.demo.inside"]
        refused = " ".join(attempt.stderr.split())
    raise PermissionError(
        f"namespaces are forbidden here ({refused}); the remedy is told by: deploy/setup demo"
    )


if __name__ == "__main__":
    sys.exit(main())
