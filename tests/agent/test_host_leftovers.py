"""What a former agent has left on the host, and an agent that may not remove it yet."""

import subprocess
from pathlib import Path

import pytest

from tests.agent.test_capabilities import agent, lines
from tests.agent.test_host_drift import run, until_probed
from tests.agent.ztunnels import reconnected
from tests.capabilities import granted
from tests.eventually import eventually
from tests.lab.lab import Lab
from tests.zds.model import ModelZtunnel

MATCH = "-m set --match-set istio-inpod-probes-v4 dst -j SNAT --to-source 169.254.7.127"
LEFT = (
    "ipset create istio-inpod-probes-v4 hash:ip comment",
    "iptables-legacy -t nat -N ISTIO_POSTRT",
    "iptables-legacy -t nat -I POSTROUTING 1 -j ISTIO_POSTRT",
    f"iptables-legacy -t nat -A ISTIO_POSTRT -m owner --socket-exists -p tcp {MATCH}",
)


def legacy_rules() -> str:
    return subprocess.run(
        ["iptables-legacy-save"], capture_output=True, text=True, check=True
    ).stdout


async def test_leftovers_stand_before_nothing(
    lab: Lab, tmp_path: Path, ztunnels: list[ModelZtunnel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """L35: without NET_RAW the former rules stay, and are told of; the next agent removes them."""
    monkeypatch.setenv("XTABLES_LOCKFILE", str(tmp_path / "xtables.lock"))
    for command in LEFT:
        run(command)
    web, grant = lab.add_pod("web"), granted()
    async with agent(tmp_path, grant.without("NET_RAW")) as node:
        node.write(web)
        node.start()
        await reconnected(node, ztunnels)
        await node.until_state(web, "enrolled")
        await eventually(lambda: bool(lines(node, "former host probe rules stay for now")))
        [said] = lines(node, "former host probe rules stay for now")
        assert "CAP_NET_RAW is missing" in said["reasons"][0]
        await until_probed(web)
    assert "ISTIO_POSTRT" in legacy_rules()
    (tmp_path / "next").mkdir()
    async with agent(tmp_path / "next", grant) as node:
        node.write(web)
        node.start()
        await reconnected(node, ztunnels)
        await node.until_state(web, "enrolled")
        await eventually(lambda: "ISTIO_POSTRT" not in legacy_rules())
        assert not lines(node, "former host probe rules stay for now")
