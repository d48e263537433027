"""The host's rules for health probes, which somebody else takes out (L37). Needs: `nft`, iptables.

The pods' own looks are an hour apart in these agents: what comes back sooner was heard.
"""

import asyncio
import contextlib
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nftables
import pytest

from nodeagent.mesh.backoff import FIRST
from tests.agent.processes import Node
from tests.agent.test_probes import PROBE, probed
from tests.agent.ztunnels import reconnected
from tests.eventually import PATIENCE, eventually
from tests.lab.lab import Lab
from tests.lab.pod import Pod
from tests.zds.model import ModelZtunnel

TABLE = "inet istio-ambient-nat"
BACKENDS = {
    "nftables": {},
    "nft": {"native_nftables": "false", "force_iptables_binary": "nft"},
    "legacy": {"native_nftables": "false", "force_iptables_binary": "legacy"},
}
DAMAGES = [
    ("nftables", "nft flush ruleset"),
    ("nftables", f"nft delete table {TABLE}"),
    ("nftables", f"nft flush chain {TABLE} nodeagent-postrouting"),
    ("nftables", f"nft flush set {TABLE} istio-inpod-probes-v4"),
    ("nft", "nft flush ruleset"),
    ("nft", "iptables-nft -t nat -F ISTIO_POSTRT"),
    ("nft", "iptables-nft -t nat -F POSTROUTING"),
    ("nft", "ipset flush istio-inpod-probes-v4"),
    ("legacy", "iptables-legacy -t nat -F ISTIO_POSTRT"),
    ("legacy", "ip6tables-legacy -t nat -F POSTROUTING"),
    ("legacy", "ipset flush istio-inpod-probes-v6"),
]


@pytest.fixture(autouse=True)
def _host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The host is that of all tests in this process: nothing stays."""
    # /run is not ours to write to where the tests run without root.
    monkeypatch.setenv("XTABLES_LOCKFILE", str(tmp_path / "xtables.lock"))
    yield
    run("nft flush ruleset")
    for program in ("iptables-legacy", "ip6tables-legacy"):
        run(f"{program} -t nat -F")
        run(f"{program} -t nat -X")
    run("ipset destroy")


def run(command: str) -> None:
    subprocess.run(command.split(), check=True)


async def enrolled(node: Node, ztunnels: list[ModelZtunnel], *pods: Pod) -> None:
    for pod in pods:
        node.write(pod)
    node.start()
    await reconnected(node, ztunnels)
    for pod in pods:
        await node.until_state(pod, "enrolled")


def told(node: Node, event: str) -> list[dict[str, Any]]:
    lines = map(json.loads, node.log.read_text().splitlines())
    return [line for line in lines if line["event"] == event]


def mended(node: Node) -> int:
    return len(told(node, "the host's rules for probes repaired"))


def are_in(pods: list[Pod], backend: str) -> bool:
    """Whether the host's sets have every address of `pods`."""
    command = ["nft", "list", "ruleset"] if backend == "nftables" else ["ipset", "save"]
    listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return all(str(address) in listing for pod in pods for address in pod.addresses)


async def until_probed(*pods: Pod) -> None:
    """Wait until the node's probes reach the pods' apps."""
    for pod in pods:
        async with asyncio.timeout(PATIENCE):
            while True:
                # Through ztunnel a probe is refused: none of the test's listens in a pod.
                with contextlib.suppress(ConnectionError):
                    if await probed(pod) == PROBE:
                        break


@pytest.mark.parametrize(("backend", "damage"), DAMAGES)
async def test_what_was_taken_out_is_put_back(
    lab: Lab, node: Node, ztunnels: list[ModelZtunnel], backend: str, damage: str
) -> None:
    """L37: after a flush the table, chains, sets and addresses of all pods are back."""
    node.flags |= BACKENDS[backend]
    pods = [lab.add_pod("web"), lab.add_pod("other")]
    await enrolled(node, ztunnels, *pods)
    await until_probed(*pods)
    assert mended(node) == 0, "nobody has changed anything"
    assert are_in(pods, backend)
    run(damage)
    # Not the log line: a pod's own look can be the first to put the pod's address back.
    await eventually(lambda: are_in(pods, backend))
    await until_probed(*pods)


async def test_rules_of_others_cost_nothing(
    lab: Lab, node: Node, ztunnels: list[ModelZtunnel]
) -> None:
    """What kube-proxy and others write of their own is heard, and nothing is mended."""
    node.flags |= BACKENDS["nft"]
    web = lab.add_pod("web")
    await enrolled(node, ztunnels, web)
    for number in range(20):
        run(f"iptables-nft -t nat -N KUBE-{number}")
    run("iptables-nft -t nat -F ISTIO_POSTRT")
    await eventually(lambda: mended(node) >= 1)
    await until_probed(web)


async def test_a_fight_is_braked_and_told(
    lab: Lab, node: Node, ztunnels: list[ModelZtunnel]
) -> None:
    """L37: one who deletes the table in a loop is named once, and a pod's look is not delayed."""
    web, other = lab.add_pod("web"), lab.add_pod("other")
    await enrolled(node, ztunnels, web)
    library, started, fought = nftables.Nftables(), time.monotonic(), 0
    while mended(node) < 10:
        code, _, _ = library.cmd(f"delete table {TABLE}")
        fought += code == 0
        await asyncio.sleep(0.001)
    taken = time.monotonic() - started
    # Each pause is at least half of its step, which doubles: 5 ms, 10 ms, …
    assert taken >= sum(min(FIRST * 2**step, 1.0) / 2 for step in range(9))
    contested = told(node, "something else keeps changing the host's rules for probes")
    assert [line["repairs"] for line in contested] in ([5], [5, 10])
    node.write(other)
    await node.until_state(other, "enrolled")
    await until_probed(web, other)
