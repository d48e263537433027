"""Moves the test run into user, network and mount namespaces of its own.

Loaded by pytest before it captures anything (`addopts = -p tests.sandbox`): no
test can touch the machine's own rules, and none needs root. Under xdist each
worker has a network namespace to itself, so that tests do not meet there.
"""

import os
import subprocess
import sys

from nodeagent import kernel

_INSIDE = "NODEAGENT_TEST_SANDBOX"
_USER = ("--user", "--map-root-user")


def _user_namespace() -> tuple[str, ...]:
    # Root can do without one where the machine allows none.
    if os.geteuid() == 0:
        attempt = subprocess.run(
            ["unshare", *_USER, "true"], stderr=subprocess.DEVNULL, check=False
        )
        if attempt.returncode != 0:
            return ()
    return _USER


def _enter() -> None:
    os.environ[_INSIDE] = "1"
    # Everybody is root inside, and pytest names its temporary directory by the user.
    os.environ["LOGNAME"] = f"uid{os.getuid()}"
    # Where Debian keeps ip and nft, out of an ordinary user's way.
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    program = ["unshare", *_user_namespace(), "--net", "--mount", sys.executable, "-m", "pytest"]
    os.execvp(program[0], [*program, *sys.argv[1:]])


if _INSIDE not in os.environ:
    _enter()
elif "PYTEST_XDIST_WORKER" in os.environ:
    kernel.unshare(kernel.CLONE_NEWNET)
