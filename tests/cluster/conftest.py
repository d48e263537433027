"""A namespace and a node for each test, in the control plane of tests/conftest.py.

Needs the programs that `binaries` finds; without them the tier is left out, and says
so. With NODEAGENT_TESTS_ALL=1 it fails instead.
"""

import itertools
import os
from collections.abc import AsyncIterator

import pytest

from nodeagent.cluster import listwatch
from tests.cluster.binaries import missing
from tests.cluster.control_plane import ControlPlane
from tests.cluster.proxy import FaultProxy

_numbers = itertools.count(1)
_LEFT_OUT = None if os.environ.get("NODEAGENT_TESTS_ALL") == "1" else missing()

collect_ignore_glob = ["test_*.py"] if _LEFT_OUT else []


@pytest.fixture
def namespace(control_plane: ControlPlane) -> str:
    """The name of a namespace that no other test has, without labels."""
    control_plane.admin.make_namespace(name := f"ns-{next(_numbers)}")
    return name


@pytest.fixture
def node_name() -> str:
    """The name of a node that no other test has; there is no Node object of the name."""
    return f"node-{next(_numbers)}"


@pytest.fixture(autouse=True)
def _no_fleet(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is one agent here: nobody with whom it must not come back together."""
    monkeypatch.setattr(listwatch, "RESUME_SPREAD", 0.0)
    monkeypatch.setattr(listwatch, "RELIST_SPREAD", 0.0)


@pytest.fixture
async def proxy(control_plane: ControlPlane) -> AsyncIterator[FaultProxy]:
    """In front of the API server; passes everything on until it is told otherwise."""
    async with FaultProxy(control_plane) as proxy:
        yield proxy
