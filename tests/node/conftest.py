"""A whole node for each test: API server, container runtime, agent, ztunnel."""

import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.cluster.control_plane import ControlPlane
from tests.cluster.proxy import FaultProxy
from tests.node.node import Node
from tests.runtime.containerd import Containerd


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
    # The host is that of all tests in this process: what another has left is not the node's.
    subprocess.run(["nft", "flush", "ruleset"], check=True)  # noqa: ASYNC221 - before all else
    made = Node(
        tmp_path, deployed, proxy=proxy, containerd=containerd, shop=namespace, name=node_name
    )
    yield made
    await made.close()
