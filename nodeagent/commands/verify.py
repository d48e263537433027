"""``nodeagent verify``: whether every pod that should be is really redirected, by a look now."""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nodeagent.commands.asking import answer, meant, understanding
from nodeagent.commands.errors import CommandError
from nodeagent.commands.terminal import Terminal, show, standard_output
from nodeagent.config import Settings

NOT_REDIRECTED = 3
"""Exit status: at least one pod that should be redirected is not, or that is not certain."""
_PATIENCE = 60.0
"""Seconds; twice what the agent takes at the most, as another command may be before this one."""

Verification = Mapping[str, Any]
"""What the agent tells of one pod: a `nodeagent.mesh.verification.Verification`."""


@understanding()
def main(options: argparse.Namespace, settings: Settings) -> int:
    """Look at `options.pods`, or at all pods of the node. Raises ``CommandError``."""
    if options.pods:
        found, missing = _of(settings, options.pods), list[str]()
    else:
        found, missing = _of_all(settings)
    if options.json:
        show(json.dumps({"pods": found, "missing": missing}, indent=2))
    else:
        show("\n".join(lines(found, missing, standard_output())))
    return NOT_REDIRECTED if missing or not all(each["ok"] for each in found) else 0


def _of(settings: Settings, names: Sequence[str]) -> list[Verification]:
    workloads = answer(settings, "workloads")
    pods = {pod["uid"]: pod for name in names for pod in meant(name, workloads)}
    found: list[Verification] = []
    for uid, pod in pods.items():
        verification = answer(settings, "verify", uid=uid, seconds=_PATIENCE)
        if verification is None:
            raise CommandError(f"pod {pod['namespace']}/{pod['name']} has gone meanwhile")
        found.append(verification)
    return found


def _of_all(settings: Settings) -> tuple[list[Verification], list[str]]:
    told = answer(settings, "verify", seconds=_PATIENCE)
    return told["pods"], told["missing"]


def lines(
    found: Sequence[Verification], missing: Sequence[str], terminal: Terminal
) -> Iterator[str]:
    """One line for each pod, by name; then how many there are of each kind."""
    names = max((len(_name(each)) for each in found), default=0)
    for each in sorted(found, key=_name):
        mark, color = _mark(each)
        yield terminal.line(
            each["reason"], before=f"{mark:4}  {_name(each):{names}}  ", color=color
        )
    if missing:
        yield terminal.line(
            f"the agent may not know every pod yet, not ready: {'; '.join(missing)}",
            before="FAIL  ",
            color="red",
        )
    wanted = [each["ok"] for each in found if each["wanted"] != "no"]
    yield terminal.line(
        f"{len(wanted)} of {len(found)} pods should be redirected;"
        f" in order: {wanted.count(True)}, not in order: {wanted.count(False)}"
    )


def _mark(verification: Verification) -> tuple[str, str]:
    if verification["wanted"] == "no":
        return "-", "faint"
    return ("ok", "green") if verification["ok"] else ("FAIL", "red")


def _name(verification: Verification) -> str:
    return f"{verification['namespace']}/{verification['name']}"
