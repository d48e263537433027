"""Health probes: what the node itself sends to an enrolled pod reaches the app directly."""

import asyncio
import os
import subprocess
import sys

from tests.agent.processes import Node
from tests.agent.ztunnels import reconnected
from tests.eventually import PATIENCE, eventually
from tests.lab.apps import echo_app
from tests.lab.lab import Lab
from tests.lab.pod import Pod
from tests.zds.model import ModelZtunnel

PROBE = ["169.254.7.127", "fd16:9254:7127:1337:ffff:ffff:ffff:ffff"]


async def probed(pod: Pod) -> list[str]:
    """Dial the pod's app from the node, in both families; return the addresses that it saw."""
    seen = []
    for address in pod.addresses:
        async with echo_app(pod, address, 8080) as app, asyncio.timeout(PATIENCE):
            reader, writer = await asyncio.open_connection(str(address), 8080)
            await reader.readline()
            writer.close()
            seen.append(app.peers[0][0])
    return seen


def nft(command: str) -> str:
    return subprocess.run(
        ["nft", "-s", "-a", *command.split()], capture_output=True, text=True, check=True
    ).stdout


def host_rules() -> str:
    return nft("list ruleset")


def uninstall(node: Node) -> str:
    return subprocess.run(
        [sys.executable, "-m", "nodeagent", "uninstall"],
        env=os.environ | {"CNI_AGENT_RUN_DIR": node.flags["cni_agent_run_dir"]},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


async def test_probe_reaches_the_app(lab: Lab, node: Node, ztunnels: list[ModelZtunnel]) -> None:
    """With no ztunnel in sight, probes of an enrolled pod succeed; without the label nothing is."""
    web = lab.add_pod("web")
    node.start()
    await reconnected(node, ztunnels)
    node.write(web)
    await node.until_state(web, "enrolled")
    assert await probed(web) == PROBE
    node.write(web, labels={})
    await node.until_state(web, "outside")
    assert await probed(web) == [str(lab.gateway_v4), str(lab.gateway_v6)]


async def test_set_through_restarts_and_uninstall(
    lab: Lab, node: Node, ztunnels: list[ModelZtunnel]
) -> None:
    """SIGKILL and an upgrade keep the set; a pod that went is pruned; uninstall ends it."""
    web, gone = lab.add_pod("web"), lab.add_pod("gone")
    node.write(web)
    node.write(gone)
    node.start()
    await reconnected(node, ztunnels)
    for pod in (web, gone):
        await node.until_state(pod, "enrolled")
    before = host_rules()
    await node.kill()
    assert host_rules() == before
    assert await probed(web) == PROBE
    node.delete(gone)
    node.start()
    await reconnected(node, ztunnels)
    await eventually(lambda: str(gone.v4) not in host_rules())
    assert await probed(web) == PROBE
    assert await node.stop() == 0
    assert str(web.v4) in host_rules()
    nft("add table inet others")
    assert uninstall(node).endswith("the host's table inet istio-ambient-nat is removed\n")
    assert uninstall(node).endswith("the host has no rules of the agent's\n")
    assert "istio" not in host_rules()
    assert "others" in host_rules()
    nft("delete table inet others")


async def test_lost_entry_comes_back(lab: Lab, node: Node, ztunnels: list[ModelZtunnel]) -> None:
    """L9: an address that somebody takes out of the set is back at the pod's next look."""
    node.flags["verify_interval"] = "0.05"
    web = lab.add_pod("web")
    node.write(web)
    node.start()
    await reconnected(node, ztunnels)
    await node.until_state(web, "enrolled")
    nft("flush ruleset")
    await eventually(lambda: str(web.v4) in host_rules())
    assert await probed(web) == PROBE
