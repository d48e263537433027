"""Moves the test run into user, network and mount namespaces of its own.

Loaded by pytest before it captures anything (`addopts = -p tests.sandbox`): no
test can touch the machine's own rules, and none needs root.
"""

import os
import sys

_INSIDE = "NODEAGENT_TEST_SANDBOX"

if _INSIDE not in os.environ:
    os.environ[_INSIDE] = "1"
    os.execvp(
        "unshare",
        [
            "unshare",
            "--user",
            "--map-root-user",
            "--net",
            "--mount",
            sys.executable,
            "-m",
            "pytest",
            *sys.argv[1:],
        ],
    )
