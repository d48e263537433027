"""A whole node for each test: API server, container runtime, agent, ztunnel.

Needs what tests/cluster and tests/runtime need; without it the tier is left out, and
says so. With NODEAGENT_TESTS_ALL=1 it fails instead.
"""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.cluster import binaries
from tests.cluster.conftest import namespace, node_name, proxy
from tests.cluster.control_plane import ControlPlane
from tests.cluster.proxy import FaultProxy
from tests.node.node import Node
from tests.runtime import containerd as runtime
from tests.runtime.conftest import containerd
from tests.runtime.containerd import Containerd

__all__ = ["containerd", "namespace", "node_name", "proxy"]

_LEFT_OUT = (
    None
    if os.environ.get("NODEAGENT_TESTS_ALL") == "1"
    else binaries.missing() or runtime.missing()
)

collect_ignore_glob = ["test_*.py"] if _LEFT_OUT else []


@pytest.fixture
async def node(  # noqa: PLR0917 - fixtures are named by their parameters
    tmp_path: Path,
    deployed: ControlPlane,
    proxy: FaultProxy,
    containerd: Containerd,
    namespace: str,
    node_name: str,
) -> AsyncIterator[Node]:
    """Without an agent yet, and without a ztunnel; a namespace of its own is the shop."""
    made = Node(
        tmp_path, deployed, proxy=proxy, containerd=containerd, shop=namespace, name=node_name
    )
    yield made
    await made.close()
