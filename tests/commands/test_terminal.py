"""Answers on terminals of any width, with and without colors, and into pipes that close."""

import io
import os
import subprocess
import sys

import pytest

from nodeagent.commands.terminal import PIPE_CLOSED, Terminal, at


class Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("environ", "colors"),
    [
        ({"TERM": "xterm"}, True),
        ({"NO_COLOR": ""}, True),
        ({"NO_COLOR": "1"}, False),
        ({"TERM": "dumb"}, False),
    ],
)
def test_colors_by_terminal_and_wish(environ: dict[str, str], *, colors: bool) -> None:
    """NO_COLOR counts where it is not empty (https://no-color.org)."""
    assert Terminal.of(Tty(), environ).colors is colors
    piped = Terminal.of(io.StringIO(), environ)
    assert (piped.width, piped.colors) == (0, False)


@pytest.mark.parametrize("width", [20, 40, 80])
@pytest.mark.parametrize("before", ["web  ", "x" * 30 + "  "])
def test_no_line_is_wider_than_the_terminal(width: int, before: str) -> None:
    """Nothing of the text is lost by that; without a terminal a line is one line."""
    text = "one two three " + "f" * 70 + " five six seven"
    lines = Terminal(width).line(text, before=before).splitlines()
    assert max(map(len, lines)) <= width
    assert "".join("".join(lines).split()) == "".join((before + text).split())
    assert Terminal().line(text, before=before) == before + text


def test_nothing_that_a_terminal_would_obey() -> None:
    """Tenants write labels and annotations; only our own colors are sent."""
    colored = Terminal(80, colors=True).line("\x1b[2J", before="\x07 ", color="red")
    assert colored == "\x1b[31m\\x07 \x1b[0m\\x1b[2J"


def test_times_are_in_utc() -> None:
    """As in the log."""
    assert at(86400 * 365.25) == "1971-01-01T06:00:00Z"


@pytest.mark.parametrize("lines", [1, 100_000])
def test_pipe_that_closes(lines: int) -> None:
    """`nodeagent history | head` ends without a word, and not as if all had been written."""
    reader, writer = os.pipe()
    os.close(reader)
    code = f"from nodeagent.commands.terminal import show; show('line\\n' * {lines})"
    # With a buffer: what is left in it is what Python would complain of.
    environ = {name: text for name, text in os.environ.items() if name != "PYTHONUNBUFFERED"}
    ran = subprocess.run(
        [sys.executable, "-c", code],
        stdout=writer,
        stderr=subprocess.PIPE,
        env=environ,
        check=False,
    )
    os.close(writer)
    assert (ran.returncode, ran.stderr) == (PIPE_CLOSED, b"")
