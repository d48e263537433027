"""The log lines of Istio's own plugin, printed as the agent's and marked as the plugin's."""

import json
from collections.abc import Iterator
from dataclasses import dataclass

import structlog

from nodeagent.cni.json_text import decoded
from nodeagent.log import printable

log = structlog.get_logger()

_LEVELS = {
    "debug": "debug",
    "info": "info",
    "warn": "warning",
    "warning": "warning",
    "error": "error",
    "dpanic": "error",
    "panic": "critical",
    "fatal": "critical",
}
"""zap's levels, as structlog calls them."""
_MOST_LINES = 200
_LONGEST = 4096
"""Characters of a line that is parsed; a call of the plugin logs a few lines of some hundred."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line: the level as structlog has it, the message, and everything else as JSON."""

    level: str
    message: str
    fields: str


def parse(body: bytes) -> Iterator[Line]:
    """Read a JSON array of strings, each a JSON object. Raises ``ValueError`` if it is none.

    A string that is no object is a message by itself. Lines beyond ``_MOST_LINES`` are dropped.
    """
    texts = decoded(body)
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError("not an array of strings")
    return map(_line, texts[:_MOST_LINES])


def print_lines(lines: Iterator[Line]) -> None:
    """Log what the plugin said."""
    for line in lines:
        getattr(log, line.level)(line.message, plugin="istio-cni", fields=line.fields)


def _line(text: str) -> Line:
    try:
        fields = decoded(text.encode()) if len(text) <= _LONGEST else None
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        return Line("info", _bounded(text), "{}")
    level = _LEVELS.get(str(fields.pop("level", "info")), "info")
    message = str(fields.pop("msg", ""))
    return Line(level, _bounded(message), _bounded(json.dumps(fields)))


def _bounded(text: str) -> str:
    return printable(text[:_LONGEST])
