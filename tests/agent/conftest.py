"""Whole agents over pods of the lab. Needs: the sandbox of tests/sandbox.py, and `ip`."""

import contextlib
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.agent.processes import Node
from tests.zds.model import ModelZtunnel


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    made = Node(tmp_path)
    yield made
    if made.process is not None:
        with contextlib.suppress(ProcessLookupError):
            made.signal(signal.SIGKILL)
        await made.ended()
    # The host is that of all tests in this process.
    subprocess.run(["nft", "flush", "ruleset"], check=True)  # noqa: ASYNC221 - at the end


@pytest.fixture
async def ztunnels() -> AsyncIterator[list[ModelZtunnel]]:
    made: list[ModelZtunnel] = []
    yield made
    for ztunnel in made:
        ztunnel.close()
        assert not ztunnel.breaches
