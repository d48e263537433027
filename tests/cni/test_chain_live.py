"""The plugin in the CNI chain of a real container runtime. Needs: what conftest.py says."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from nodeagent.agent.uninstall import uninstall
from tests.cni import shim_process
from tests.eventually import eventually
from tests.runtime.containerd import Containerd
from tests.runtime.mesh import OUTSIDE, MeshNode, mesh_node


@pytest.fixture
async def node(tmp_path: Path, containerd: Containerd) -> AsyncIterator[MeshNode]:
    async with mesh_node(tmp_path, containerd) as made:
        await made.start_agent()
        yield made


async def test_first_packet_goes_through_ztunnel(node: MeshNode) -> None:
    """What a pod's first process sends first is redirected; other pods are as they were."""
    stub = await node.start_ztunnel()
    server = await node.server()
    outside = await node.run("outside", labels=OUTSIDE)
    await node.dial(outside, server)
    assert stub.connections("outbound") == 0
    inside = await node.run("inside")
    await node.containerd.dial(inside, server, 80)
    await eventually(lambda: stub.connections("outbound") == 1)


async def test_agent_away(node: MeshNode) -> None:
    """L15: what starts a node starts without the agent; mesh pods wait, and start with it."""
    await node.start_ztunnel()
    server = await node.server()
    await node.agent.stop()
    *_, reason, other = await asyncio.gather(
        node.run("dns", "kube-system"),
        node.run("nodeagent-x2x4z", "istio-system"),
        node.run("ztunnel-x2x4z", "istio-system"),
        node.run("plane-0", "control"),
        node.refused("web"),
        node.refused("istiod-5d9f-x2x4z", "istio-system"),
    )
    assert "look at the agent's pod" in reason
    assert "look at the agent's pod" in other
    starting = asyncio.create_task(node.run_until_it_starts("web"))
    await node.start_agent()
    await node.containerd.dial(await starting, server, 80)


async def test_restart_of_the_agent_is_not_noticed(node: MeshNode) -> None:
    """A mesh pod that starts while the agent is replaced starts at the first attempt."""
    await node.start_ztunnel()
    await node.agent.stop()
    starting = asyncio.create_task(node.run("web"))
    await node.start_agent()
    await starting


async def test_agent_killed_in_the_middle(node: MeshNode) -> None:
    """An ADD whose agent dies is refused, never let through; the next one succeeds."""
    server = await node.server()
    refused = asyncio.create_task(node.refused("web"))
    await eventually(lambda: (row := node.row("web")) is not None and row["state"] == "pending")
    await node.agent.kill()
    assert "look at the agent's pod" in await refused
    await node.start_agent()
    stub = await node.start_ztunnel()
    await node.containerd.dial(await node.run_until_it_starts("web"), server, 80)
    await eventually(lambda: stub.connections("outbound") == 1)


async def test_hundred_at_once(node: MeshNode) -> None:
    """L5: a hundred sandboxes that are made at the same moment are all in the mesh."""
    await node.start_ztunnel()
    names = [f"web-{number}" for number in range(100)]
    await asyncio.gather(*map(node.run, names))
    rows = [node.row(name) for name in names]
    assert {row["state"] for row in rows if row} == {"enrolled"}
    assert len({row["netns"] for row in rows if row}) == len(names)


async def test_runtime_restarted(node: MeshNode) -> None:
    """Pods from before can be deleted, and new ones start redirected."""
    await node.start_ztunnel()
    before = await node.run("before")
    await node.containerd.restart()
    await node.run("after")
    assert (row := node.row("before")) is not None
    assert row["state"] == "enrolled"
    await node.containerd.remove_sandbox(before)
    await node.until_not_held("before")


async def test_sandbox_made_again(node: MeshNode) -> None:
    """L14: under the same UID the new sandbox is in the mesh, and the old one is let go."""
    await node.start_ztunnel()
    server = await node.server()
    first = await node.run("web")
    second = await node.run("web")
    await node.containerd.remove_sandbox(first)
    await node.containerd.dial(second, server, 80)
    assert (row := node.row("web")) is not None
    assert (row["state"], row["addresses"]) == (
        "enrolled",
        [str(address) for address in await node.containerd.addresses(second)],
    )


async def test_deleted_without_the_agent(node: MeshNode) -> None:
    """L18: nothing hangs in Terminating because the agent is away, or gone for good."""
    await node.start_ztunnel()
    one, two = await asyncio.gather(node.run("one"), node.run("two"))
    await node.agent.stop()
    await node.containerd.remove_sandbox(one)
    await uninstall(node.settings)
    assert not list(node.containerd.net_dir.glob("*istio*"))
    assert os.path.exists(node.containerd.bin_dir / "nodeagent"), "a sandbox needs it still"
    await node.containerd.remove_sandbox(two)
    assert await node.containerd.sandboxes() == []
    await node.run_until_it_starts("three")


async def test_commands_that_this_runtime_does_not_use(node: MeshNode) -> None:
    """CHECK, STATUS and GC, by the installed binary, about a sandbox that the runtime made."""
    await node.start_ztunnel()
    sandbox = await node.run("web")
    ips = [{"address": f"{address}/16"} for address in await node.containerd.addresses(sandbox)]

    async def call(command: str, **more: object) -> int:
        config = {
            "cniVersion": "1.1.0",
            "name": "pods",
            "socket": node.settings.plugin_socket,
            "prevResult": {"cniVersion": "1.1.0", "ips": ips},
            **more,
        }
        finished = await shim_process.run(
            node.containerd.bin_dir / "nodeagent",
            command,
            json.dumps(config).encode(),
            arguments="K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;K8S_POD_UID=uid-web",
            CNI_CONTAINERID=sandbox,
            CNI_NETNS=await node.containerd.netns(sandbox),
            CNI_IFNAME="eth0",
        )
        return finished.status

    assert await call("CHECK") == 0
    assert await call("STATUS") == 0
    valid = [{"containerID": sandbox, "ifname": "eth0"}]
    assert await call("GC", **{"cni.dev/valid-attachments": valid}) == 0
    assert await call("CHECK") == 0
    assert await call("GC", **{"cni.dev/valid-attachments": []}) == 0
    await node.until_not_held("web")
    assert await call("CHECK") == 1
