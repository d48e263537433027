"""Asking the agent that runs on this node what it knows, at its admin socket."""

import http.client
import json
import socket
from collections.abc import Mapping
from typing import Any

_DEADLINE = 5.0
"""Seconds; the agent answers from memory."""

Workload = Mapping[str, Any]
"""What the agent tells of one pod; `nodeagent.mesh.workload.Workload.describe` makes it."""


class NoAgentError(Exception):
    """No agent answers at the socket; the text names the socket and the setting for it."""


def fetch_workloads(path: str) -> list[Workload]:
    """What the agent whose admin socket is `path` knows of its pods. Raises ``NoAgentError``."""
    connection = _UnixConnection(path)
    try:
        connection.request("GET", "/workloads")
        response = connection.getresponse()
        body = response.read()
        if response.status != http.client.OK:
            raise NoAgentError(f"the agent at {path} answered {response.status} {response.reason}")
        workloads: list[Workload] = json.loads(body)
    except PermissionError as error:
        raise NoAgentError(f"{path}: only the agent's own user may ask it") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise NoAgentError(f"no agent answers at {path}: {error} (CNI_AGENT_RUN_DIR?)") from error
    finally:
        connection.close()
    return workloads


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=_DEADLINE)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)
