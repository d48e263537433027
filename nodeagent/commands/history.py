"""``nodeagent history``: the last transitions of the node's pods, in the order of time."""

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nodeagent.commands.asking import answer, meant, understanding
from nodeagent.commands.terminal import Terminal, at, show, standard_output
from nodeagent.config import Settings

Record = Mapping[str, Any]
"""What the agent tells of one pod: a `nodeagent.mesh.history.Record`."""


@understanding()
def main(options: argparse.Namespace, settings: Settings) -> int:
    """Print the transitions of each pod in `options.pods`, or of all. Raises ``CommandError``."""
    records: Sequence[Record] = answer(settings, "history")
    if options.pods:
        uids = {pod["uid"] for name in options.pods for pod in meant(name, records)}
        records = [record for record in records if record["uid"] in uids]
    if options.json:
        show(json.dumps(records, indent=2))
    elif text := lines(records, standard_output()):
        show(text)
    return 0


def lines(records: Iterable[Record], terminal: Terminal) -> str:
    """One line for each transition of `records`, the oldest first."""
    rows = sorted(
        (each["first"], f"{record['namespace']}/{record['name']}", each["what"], _why(each))
        for record in records
        for each in record["transitions"]
    )
    names = max((len(name) for _, name, *_ in rows), default=0)
    width = max((len(what) for *_, what, _ in rows), default=0)
    return "\n".join(
        terminal.line(why, before=f"{at(first)}  {name:{names}}  {what:{width}}  ").rstrip()
        for first, name, what, why in rows
    )


def _why(transition: Mapping[str, Any]) -> str:
    why, times = str(transition["why"]), transition["times"]
    return why if times == 1 else f"{why} ({times} times, last at {at(transition['last'])})"
