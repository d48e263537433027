"""A real container runtime for each test that wants one.

Needs root itself (not that of a user namespace), containerd, runc, gcc and the CNI
plugins; without them the tier is left out, and says so. With NODEAGENT_TESTS_ALL=1
it fails instead.
"""

import os
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.runtime.containerd import Containerd, missing

_LEFT_OUT = None if os.environ.get("NODEAGENT_TESTS_ALL") == "1" else missing()

collect_ignore_glob = ["test_*.py"] if _LEFT_OUT else []


@pytest.fixture
async def containerd(pod_image: Path) -> AsyncIterator[Containerd]:
    """Started, without pods; whatever is made in it ends with the test."""
    if lacking := missing():
        pytest.fail(f"no container runtime here: {lacking}")
    with tempfile.TemporaryDirectory(prefix="containerd-") as directory:
        async with Containerd(Path(directory), pod_image) as containerd:
            yield containerd
