"""Moves the test run into namespaces of its own.

Loaded by pytest before it captures anything (`addopts = -p tests.sandbox`): no
test can touch the machine's own rules, and most need no root. Under xdist each
worker has a network namespace to itself, so that tests do not meet there.
"""

import os
import sys

from nodeagent.linux import syscalls as kernel

_INSIDE = "NODEAGENT_TEST_SANDBOX"
_UNPRIVILEGED = ("--user", "--map-root-user")
_ROOT = ("--pid", "--fork", "--kill-child", "--mount-proc")
"""A container runtime needs root itself, and nothing that it starts outlives the run."""


def _enter() -> None:
    os.environ[_INSIDE] = "1"
    # Everybody is root inside, and pytest names its temporary directory by the user.
    os.environ["LOGNAME"] = f"uid{os.getuid()}"
    # Where Debian keeps ip and nft, out of an ordinary user's way.
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    namespaces = (*(_UNPRIVILEGED if os.geteuid() else _ROOT), "--net", "--mount")
    program = ["unshare", *namespaces, sys.executable, "-m", "pytest"]
    os.execvp(program[0], [*program, *sys.argv[1:]])


if _INSIDE not in os.environ:
    _enter()
elif "PYTEST_XDIST_WORKER" in os.environ:
    kernel.unshare(kernel.CLONE_NEWNET)
