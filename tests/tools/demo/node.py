"""The node of the story: three pods with their apps and manifests, the agent and the stub."""

import asyncio
import contextlib
import json
import os
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any

import nftables

from nodeagent.admin.client import NoAgentError, fetch_workloads
from nodeagent.redirect.nft_rules import TABLE_NAMES
from tests.eventually import PATIENCE
from tests.lab.apps import App, echo_app
from tests.lab.lab import Lab
from tests.lab.pod import Pod
from tests.tools.demo.programs import Line, Log, Program, answer_of, started

PORT = 8080
DRAIN = 1.0
"""Seconds that a stub leaves its open connections when it is told to stop."""

_MANIFEST = """\
apiVersion: v1
kind: Pod
metadata:
  name: {name}
  namespace: shop
  labels:
    app: {name}
{label}  annotations:
    nodeagent.io/netns: {netns}
status:
  podIPs: [{{ip: "{v4}"}}, {{ip: "{v6}"}}]
"""
_LABEL = "    istio.io/dataplane-mode: ambient\n"
_NAMESPACE = "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: shop\n"
_UNKNOWN = {"state": "unknown", "reason": "", "detail": "no such pod"}
_COUNTED = re.compile(r"packets \d+ bytes \d+")


class Node:
    """Made by `build`; owns everything until the end of that block."""

    def __init__(
        self, lab: Lab, directory: str, parts: AsyncExitStack, apps: Sequence[App]
    ) -> None:
        self.client = lab.add_pod("client")
        self.server = lab.add_pod("server")
        self.outsider = lab.add_pod("outsider")
        self.pods = (self.client, self.server, self.outsider)
        self._directory = directory
        self._parts = parts
        self._apps = apps
        self._agent_log = Log(self._path("agent.log"))
        self._stub_log = Log(self._path("stub.log"))
        self._stubs = 0
        os.mkdir(self._path("pods"))

    async def start_agent(self) -> Program:
        """Run the agent; returns once it is ready."""
        agent = await self._parts.enter_async_context(
            started(
                "nodeagent",
                "nodeagent",
                "run",
                f"--pod-manifests={self._path('pods')}",
                f"--ztunnel-uds-address={self._path('ztunnel.sock')}",
                f"--cni-agent-run-dir={self._directory}",
                "--log-format=json",
                log=self._agent_log,
            )
        )
        await agent.ready(self._path("admin.sock"), "/readyz")
        return agent

    async def start_stub(self) -> Program:
        """Run another stub; returns once it has the whole snapshot."""
        self._stubs += 1
        readiness = self._path(f"ready{self._stubs}.sock")
        stub = await self._parts.enter_async_context(
            started(
                "ztunnel-stub",
                "ztunnel_stub",
                f"--inpod-uds={self._path('ztunnel.sock')}",
                "--admin-address=",
                f"--readiness-address=unix:{readiness}",
                f"--drain-timeout={DRAIN}",
                "--log-format=json",
                log=self._stub_log,
            )
        )
        await stub.ready(readiness, "/healthz/ready")
        return stub

    def write(self, pod: Pod, *, labeled: bool) -> None:
        """Put the pod's manifest into the folder, with the mesh's label or without."""
        text = _MANIFEST.format(
            name=pod.name,
            label=_LABEL if labeled else "",
            netns=pod.path,
            v4=pod.v4,
            v6=pod.v6,
        )
        with open(self._path("pods", f"{pod.name}.yaml"), "w", encoding="utf-8") as file:
            file.write(text)

    def write_namespace(self) -> None:
        """Put the manifest of the pods' Kubernetes namespace there."""
        with open(self._path("pods", "shop.yaml"), "w", encoding="utf-8") as file:
            file.write(_NAMESPACE)

    async def until_states(self, **wanted: str) -> Mapping[str, str]:
        """Wait until the agent says so of each pod; what it said last, in time or not."""
        seen: dict[str, str] = {}
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                while not wanted.items() <= seen.items():
                    await asyncio.sleep(0.005)
                    with contextlib.suppress(NoAgentError):
                        rows = fetch_workloads(self._path("admin.sock"))
                        seen = {row["name"]: row["state"] for row in rows}
        return seen

    async def status(self) -> dict[str, dict[str, Any]]:
        """What ``nodeagent status`` prints, by the pod's name; every pod has a row."""
        answer = await answer_of("status", "--json", f"--cni-agent-run-dir={self._directory}")
        rows = {row["name"]: row for row in json.loads(answer)}
        return {pod.name: rows.get(pod.name, _UNKNOWN) for pod in self.pods}

    def greeted(self) -> int:
        """How many connections the apps have had."""
        return sum(len(app.peers) for app in self._apps)

    def connections(self) -> list[Line]:
        """The stub's line for each connection that has ended, oldest first."""
        return [line for line in self._stub_log.lines() if line["event"] == "connection ended"]

    def _path(self, *names: str) -> str:
        return os.path.join(self._directory, *names)


@contextlib.asynccontextmanager
async def build(directory: str) -> AsyncIterator[Node]:
    """Make the pods and start their apps; agent and stub come later."""
    with Lab() as lab:
        async with AsyncExitStack() as parts:
            apps: list[App] = []
            node = Node(lab, directory, parts, apps)
            for pod in (node.server, node.outsider):
                for address in pod.addresses:
                    app = echo_app(pod, address, PORT, name=pod.name)
                    apps.append(await parts.enter_async_context(app))
            yield node


def ruleset(pod: Pod) -> str:
    """Everything that nftables has in `pod`, with the handles, without the counters' values."""
    return _COUNTED.sub("", pod.run(_ruleset))


def _ruleset() -> str:
    library = nftables.Nftables()
    library.set_handle_output(True)
    # Ours one by one: the library's version 1.0.6 lists only the first of several.
    listings = (library.cmd(f"list table inet {name}")[1] for name in TABLE_NAMES)
    return "".join(listings) or str(library.cmd("list ruleset")[1])
