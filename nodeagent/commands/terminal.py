"""How a command's answer gets to a person: the width, the colors, and a pipe that closes."""

import os
import shutil
import signal
import sys
import textwrap
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TextIO

from nodeagent.log import printable

_PIPED = 0
_NARROWEST = 20
"""Columns; a terminal that says less is taken for this wide."""
_COLORS = {"red": 31, "green": 32, "yellow": 33, "bold": 1, "faint": 2}
PIPE_CLOSED = 128 + signal.SIGPIPE
"""Exit status where the reader of a pipe has gone, as of a program that the signal ends."""


@dataclass(frozen=True, slots=True)
class Terminal:
    """What the answer is written for."""

    width: int = _PIPED
    """Columns; 0: as many as are needed, because no terminal reads this."""
    colors: bool = False

    @classmethod
    def of(cls, stream: TextIO, environ: Mapping[str, str]) -> "Terminal":
        """What `stream` is; without colors where NO_COLOR is set (https://no-color.org)."""
        if not stream.isatty():
            return cls()
        colors = not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"
        return cls(max(_NARROWEST, shutil.get_terminal_size().columns), colors)

    def column(self, wanted: int) -> int:
        """Where a second column begins: at `wanted`, or further left on a narrow terminal."""
        return wanted if not self.width or wanted <= self.width // 2 else 6

    def line(self, text: str, *, before: str = "", color: str = "") -> str:
        """Return `before` and `text`, wrapped below each other; only `before` is colored.

        What is not printable is spelled out: tenants have written some of it.
        """
        text, before = printable(text), printable(before)
        lines = [before + text]
        if self.width and len(lines[0]) > self.width:
            column = self.column(len(before))
            lines = textwrap.wrap(
                lines[0], self.width, subsequent_indent=" " * column, break_on_hyphens=False
            )
        if color and self.colors and lines[0].startswith(before):
            lines[0] = f"\x1b[{_COLORS[color]}m{before}\x1b[0m{lines[0][len(before) :]}"
        return "\n".join(lines)


def standard_output() -> Terminal:
    """What standard output is."""
    return Terminal.of(sys.stdout, os.environ)


def show(text: str) -> None:
    """Write `text` and a line's end. Ends the process quietly where nobody reads it any more."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # Python would write what is left at the exit, and complain then.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(PIPE_CLOSED) from None


def at(seconds: float) -> str:
    """A time that counts from the epoch, as the log writes it: in UTC, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
