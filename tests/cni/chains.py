"""Chains that end with the binary, and an agent that adds nothing to their results."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

from tests.cni.libcni import Attachment, left_out
from tests.cni.shim_process import LET_THROUGH, ModelAgent

DEBIAN = Path("/usr/lib/cni")
"""Where Debian keeps the CNI project's plugins."""

VERSIONS = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]
WITH_CHECK = VERSIONS[2:]
WITH_STATUS = VERSIONS[4:]
POD = {"IgnoreUnknown": "1", "K8S_POD_NAMESPACE": "shop", "K8S_POD_NAME": "cart-5d9f"}
COREDNS = {"IgnoreUnknown": "1", "K8S_POD_NAMESPACE": "kube-system", "K8S_POD_NAME": "coredns-1"}


@dataclass
class EchoingAgent(ModelAgent):
    """Answers each request with its previous result, as a plugin that adds nothing does."""

    commands: list[str] = field(default_factory=list)

    async def answer(self, request: web.Request) -> web.Response:
        environment, stdin = (await request.read()).split(b"\0\0", 1)
        variables = dict(entry.split("=", 1) for entry in environment.decode().split("\0"))
        self.commands.append(variables["CNI_COMMAND"])
        if variables["CNI_COMMAND"] != "ADD":
            return web.Response()
        return web.json_response(json.loads(stdin)["prevResult"])


def chain_of(version: str, socket: Path, first: dict[str, Any]) -> dict[str, Any]:
    """Make a list of two plugins: `first`, and ours."""
    ours = {"type": "nodeagent", "socket": str(socket), "letThrough": LET_THROUGH}
    return {"cniVersion": version, "name": "k8s-pod-network", "plugins": [first, ours]}


def attachment_of(arguments: dict[str, str] = POD, *, netns: str = "/proc/1/ns/net") -> Attachment:
    """Make the interface of the one container there is."""
    return Attachment(container_id="c1", netns=netns, arguments=arguments)


def missing() -> str | None:
    """Say in a line that the real plugins are not there; nothing where they are."""
    if (DEBIAN / "bridge").exists():
        return None
    return left_out("behind real plugins", "/usr/lib/cni (containernetworking-plugins)")
