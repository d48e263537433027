"""The start-up taint on a real node object."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from nodeagent.cluster.api import ApiServer
from nodeagent.cluster.taint import remove_taint
from tests.cluster.control_plane import ControlPlane
from tests.cluster.proxy import FaultProxy
from tests.eventually import eventually

UNREADY = "node.kubernetes.io/not-ready"
"""The server itself puts it on a node that is made."""
KEY = "cni.istio.io/not-ready"
OTHER = {"key": "gpu", "effect": "NoSchedule"}
TAINTS = [{"key": KEY, "value": "x", "effect": effect} for effect in ("NoSchedule", "NoExecute")]


@pytest.fixture
async def api(
    control_plane: ControlPlane, proxy: FaultProxy, tmp_path: Path
) -> AsyncIterator[ApiServer]:
    kubeconfig = control_plane.kubeconfig(tmp_path / "kubeconfig", server=proxy.url)
    async with ApiServer.connect(kubeconfig) as api:
        yield api


def taint(control_plane: ControlPlane, node_name: str, *taints: dict[str, str]) -> None:
    node = {"metadata": {"name": node_name}, "spec": {"taints": taints}}
    control_plane.admin.post("/api/v1/nodes", node)


def taints(control_plane: ControlPlane, node_name: str) -> list[str]:
    node = control_plane.admin.get(f"/api/v1/nodes/{node_name}")
    return [taint["key"] for taint in node["spec"]["taints"] if taint["key"] != UNREADY]


async def test_taint_is_removed(
    control_plane: ControlPlane, api: ApiServer, node_name: str
) -> None:
    """L19: every effect of the taint goes, other taints and other nodes are left alone."""
    taint(control_plane, node_name, TAINTS[0], OTHER, TAINTS[1])
    taint(control_plane, f"{node_name}-b", TAINTS[0])
    assert await remove_taint(api, node_name, KEY)
    assert taints(control_plane, node_name) == ["gpu"]
    assert taints(control_plane, f"{node_name}-b") == [KEY]


async def test_no_taint(
    control_plane: ControlPlane, api: ApiServer, proxy: FaultProxy, node_name: str
) -> None:
    """A node without the taint is looked at, and not written to."""
    taint(control_plane, node_name, OTHER)
    assert not await remove_taint(api, node_name, KEY)
    assert proxy.requests == [f"GET /api/v1/nodes/{node_name}"]


async def test_taint_that_others_write_to(
    control_plane: ControlPlane, api: ApiServer, proxy: FaultProxy, node_name: str
) -> None:
    """A taint that is set between look and write is not lost with ours."""
    taint(control_plane, node_name, TAINTS[0])
    proxy.delay = 0.1
    removing = asyncio.create_task(remove_taint(api, node_name, KEY))
    await eventually(lambda: proxy.count("PATCH") == 1)
    path = f"/api/v1/nodes/{node_name}"
    control_plane.admin.patch(path, {"spec": {"taints": [TAINTS[0], OTHER]}})
    assert await removing
    assert taints(control_plane, node_name) == ["gpu"]
    assert proxy.count("PATCH") == 2


async def test_taint_with_the_api_in_trouble(
    control_plane: ControlPlane, api: ApiServer, proxy: FaultProxy, node_name: str
) -> None:
    """It is tried until it is done, also where the node is not there yet."""
    proxy.answer(500, match="GET", times=2)
    removing = asyncio.create_task(remove_taint(api, node_name, KEY))
    await eventually(lambda: proxy.count("GET") == 4)
    taint(control_plane, node_name, TAINTS[0])
    proxy.answer(403, match="PATCH")
    assert await removing
    assert taints(control_plane, node_name) == []


@pytest.mark.parametrize("spec", [None, 7, {"taints": 7}, {"taints": [7]}])
async def test_node_in_an_odd_shape(
    control_plane: ControlPlane,
    api: ApiServer,
    proxy: FaultProxy,
    node_name: str,
    spec: object,
) -> None:
    """An answer that is no node does not end the agent: it is asked for again."""
    taint(control_plane, node_name, TAINTS[0])
    proxy.answer(200, json.dumps({"metadata": 7, "spec": spec}), match="GET")
    assert await remove_taint(api, node_name, KEY)
    assert taints(control_plane, node_name) == []
