"""Pods with a redirection of their own, over which an agent comes and goes (L30)."""

import contextlib
import os
import subprocess
import sys

import pytest

from tests.agent.processes import Node
from tests.agent.test_backends import BACKENDS
from tests.agent.ztunnels import reconnected
from tests.lab.lab import Lab
from tests.lab.strangers import STRANGERS, everything
from tests.zds.model import ModelZtunnel


def uninstall(node: Node) -> None:
    environment = {name.upper(): value for name, value in node.flags.items()}
    command = [sys.executable, "-m", "nodeagent", "uninstall"]
    subprocess.run(command, env=os.environ | environment, check=True)


@pytest.mark.parametrize("backend", BACKENDS)
async def test_no_agent_takes_a_stranger_apart(
    lab: Lab, node: Node, ztunnels: list[ModelZtunnel], backend: str
) -> None:
    """L30: not at its start, nor while it enrolls another pod, nor when it is uninstalled."""
    pods = {name: lab.add_pod(name) for name in STRANGERS}
    for name, pod in pods.items():
        STRANGERS[name](pod)
        annotations = {"sidecar.istio.io/status": "{}"} if "sidecar" in name else {}
        node.write(pod, labels={}, annotations=annotations)
    before = {name: everything(pod) for name, pod in pods.items()}
    web = lab.add_pod("web")
    node.write(web)
    node.flags |= BACKENDS[backend]
    node.start()
    await reconnected(node, ztunnels)
    await node.until_state(web, "enrolled")
    for pod in pods.values():
        await node.until_state(pod, "outside")
    with contextlib.suppress(ProcessLookupError):
        await node.stop()
    uninstall(node)
    for name, pod in pods.items():
        assert everything(pod) == before[name], name
