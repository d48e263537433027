"""``nodeagent status``: asks the running agent what it knows."""

import http.client
import json
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any

from nodeagent.log import printable

_DEADLINE = 5.0
"""Seconds; the agent answers from memory."""
_HEADINGS = ("POD", "UID", "ENROLLED?", "STATE", "WHY", "SINCE", "VERIFIED")

Workload = Mapping[str, Any]


class NoAgentError(Exception):
    """Nobody answers, or not as the agent does; the text says what to look at."""


def fetch_workloads(path: str) -> list[Workload]:
    """Ask the agent whose admin socket is `path`. Raises ``NoAgentError``."""
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


def table(workloads: Sequence[Workload], now: float) -> str:
    """`workloads` for people, sorted by name; `now` in seconds since the epoch."""
    rows = [_HEADINGS, *sorted(_row(workload, now) for workload in workloads)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def status(path: str, *, as_json: bool) -> int:
    """Print what the agent says; the exit status. Raises ``NoAgentError``."""
    workloads = fetch_workloads(path)
    print(json.dumps(workloads, indent=2) if as_json else table(workloads, time.time()))  # noqa: T201
    return 0


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=_DEADLINE)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _row(workload: Workload, now: float) -> tuple[str, ...]:
    state = workload["state"]
    cells = (
        f"{workload['namespace']}/{workload['name']}",
        workload["uid"],
        "yes" if state == "enrolled" else "no",
        state,
        workload["detail"] or workload["reason"],
        _age(now - workload["since"]),
        "-" if (verified := workload["verified"]) is None else f"{_age(now - verified)} ago",
    )
    return tuple(map(printable, cells))


def _age(seconds: float) -> str:
    left = max(0, int(seconds))
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if left >= 2 * length:
            return f"{left // length}{unit}"
    return f"{left}s"
