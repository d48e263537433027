"""``nodeagent explain``: one pod from its labels to ztunnel on one page, with what to do."""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nodeagent.commands.asking import Named, answer, meant, understanding
from nodeagent.commands.errors import CommandError
from nodeagent.commands.terminal import Terminal, at, show, standard_output
from nodeagent.config import Settings

NOT_IN_ORDER = 3
"""Exit status: the pod is not as it should be."""
_PATIENCE = 60.0
"""Seconds; the agent's answer takes half a minute at the most."""
_RECENT = 5
"""Transitions that are shown; `nodeagent history` has the others."""
_MARKS = {"ok": ("ok", "green"), "wrong": ("FAIL", "red"), "note": ("-", "faint")}
_UNKNOWN = ("?", "yellow")

Explanation = Mapping[str, Any]
"""What the agent tells: a `nodeagent.mesh.explanation.Explanation`."""


@understanding()
def main(options: argparse.Namespace, settings: Settings) -> int:
    """Explain `options.pod`. Raises ``CommandError``."""
    pod, others = _one(settings, options.pod)
    explanation = answer(settings, "explain", uid=pod["uid"], seconds=_PATIENCE)
    if explanation is None:
        raise CommandError(f"pod {options.pod} has gone meanwhile")
    if options.json:
        show(json.dumps(explanation, indent=2))
    else:
        show("\n".join(page(explanation, others, standard_output())))
    return 0 if explanation["ok"] else NOT_IN_ORDER


def _one(settings: Settings, name: str) -> tuple[Named, Sequence[Named]]:
    """The pod that is meant, the newest of several with its name, and the others."""
    workloads: list[Named] = answer(settings, "workloads")
    try:
        found = meant(name, workloads)
    except CommandError as unknown:
        try:
            meant(name, answer(settings, "history"))
        except CommandError:
            raise unknown from None
        raise CommandError(f"pod {name} is gone: `nodeagent history {name}` has its end") from None
    names = dict.fromkeys(f"{pod['namespace']}/{pod['name']}" for pod in found)
    if len(names) > 1:
        raise CommandError(f"several pods have the name {name}; say which: {', '.join(names)}")
    return found[-1], found[:-1]


def page(explanation: Explanation, others: Sequence[Named], terminal: Terminal) -> Iterator[str]:
    """The lines for a person; `others`: more pods that have the same name."""
    yield terminal.line(f"  UID {explanation['uid']}", before=_name(explanation), color="bold")
    for other in others:
        yield terminal.line(f"UID {other['uid']} has this name, too", before="  ")
    topics = max(len(link["topic"]) for link in explanation["links"])
    for link in explanation["links"]:
        mark, color = _MARKS.get(link["mark"], _UNKNOWN)
        before = f"{mark:4}  {link['topic']:{topics}}  "
        yield terminal.line(link["says"], before=before, color=color)
        for each in link["evidence"]:
            yield terminal.line(each, before=" " * terminal.column(len(before) + 2))
    for each in explanation["history"][-_RECENT:]:
        times = f" ({each['times']} times)" if each["times"] > 1 else ""
        before = f"{at(each['last'])}  {each['what']:8}  "
        yield terminal.line(f"{each['why']}{times}", before=before)
    mark, color = ("ok", "green") if explanation["ok"] else ("FAIL", "red")
    yield terminal.line(explanation["verdict"], before=f"{mark:4}  ", color=color)
    yield terminal.line(explanation["next_step"], before="next  ", color="bold")


def _name(explanation: Explanation) -> str:
    return f"{explanation['namespace']}/{explanation['name']}"
