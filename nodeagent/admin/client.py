"""Asking the agent that runs on this node what it knows, at its admin socket."""

import http.client
import json
import socket
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

_DEADLINE = 5.0
"""Seconds; the agent answers from memory."""

Workload = Mapping[str, Any]
"""What the agent tells of one pod; `nodeagent.mesh.workload.Workload.describe` makes it."""


class NoAgentError(Exception):
    """No agent answers at the socket; the text names the socket and the setting for it."""


def fetch_workloads(path: str) -> list[Workload]:
    """What the agent whose admin socket is `path` knows of its pods. Raises ``NoAgentError``."""
    workloads: list[Workload] = ask(path, "workloads")
    return workloads


def ask(path: str, question: str, *, uid: str = "", seconds: float = _DEADLINE) -> Any:
    """Ask the agent whose admin socket is `path` about the pod `uid`, or about all.

    Returns a JSON value; None: the agent does not know the pod any more. Raises
    ``NoAgentError``, also where nothing was heard for so many `seconds`.
    """
    connection = _UnixConnection(path, seconds)
    try:
        connection.request("GET", f"/{question}" + (f"?uid={quote(uid, safe='')}" if uid else ""))
        response = connection.getresponse()
        body = response.read()
        match response.status:
            case http.client.OK:
                return json.loads(body)
            case http.client.GONE:
                return None
            case http.client.NOT_FOUND:
                raise NoAgentError(
                    f"the agent at {path} is older than this command, and does not know the"
                    f" question {question!r}: use the nodeagent of the agent's own image"
                )
            case status:
                raise NoAgentError(f"the agent at {path} answered {status} {response.reason}")
    except PermissionError as error:
        raise NoAgentError(
            f"{path}: only the agent's own user may ask it, and root: try with sudo"
        ) from error
    except TimeoutError as error:
        raise NoAgentError(f"the agent at {path} has not answered for {seconds:g} s") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise NoAgentError(
            f"no agent answers at {path}: {error}; `nodeagent run` starts one, and"
            " CNI_AGENT_RUN_DIR says where its socket is"
        ) from error
    finally:
        connection.close()


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, seconds: float) -> None:
        super().__init__("localhost", timeout=seconds)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)
