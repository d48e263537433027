"""``nodeagent status``: which pods the running agent knows, and how far their enrollment is."""

import argparse
import json
import time
from collections.abc import Sequence

from nodeagent.admin.client import Workload
from nodeagent.commands.asking import answer, understanding
from nodeagent.commands.terminal import show
from nodeagent.config import Settings
from nodeagent.log import printable

_HEADINGS = ("POD", "UID", "ENROLLED?", "STATE", "WHY", "SINCE", "VERIFIED")


@understanding()
def main(options: argparse.Namespace, settings: Settings) -> int:
    """Print what the agent says. Raises ``CommandError`` where no agent answers."""
    workloads: Sequence[Workload] = answer(settings, "workloads")
    show(json.dumps(workloads, indent=2) if options.json else table(workloads, time.time()))
    return 0


def table(workloads: Sequence[Workload], now: float) -> str:
    """One line for each of `workloads`, sorted by name; `now` in seconds since the epoch."""
    rows = [_HEADINGS, *sorted(_row(workload, now) for workload in workloads)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


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
