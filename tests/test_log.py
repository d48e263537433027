"""What a line of the log looks like."""

import json
import os
import pty
import subprocess
import sys
from datetime import UTC, datetime

import pytest

from tests.eventually import PATIENCE

_PROGRAM = """
import logging, sys
import structlog
from nodeagent import log

log.configure(sys.argv[1], sys.argv[2])
logger = structlog.get_logger()
logger.debug("not shown")
logger.info("pod enrolled", pod="shop/web\\x1b[2J\\u202e", addresses=["10.0.0.1\\x1b"], count=3)
logging.getLogger("asyncio").warning("slow\\n%s", "callback")
try:
    raise ValueError("bad\\x1b[31m\\nvalue")
except ValueError:
    logger.exception("boom")
"""


def output(fmt: str, level: str = "info") -> str:
    """Run the program with a pipe as its standard error."""
    program = [sys.executable, "-c", _PROGRAM, level, fmt]
    run = subprocess.run(program, capture_output=True, text=True, check=True, timeout=PATIENCE)
    assert not run.stdout
    return run.stderr


@pytest.mark.parametrize("fmt", ["json", "auto"])
def test_for_programs_each_line_is_an_object(fmt: str) -> None:
    """Without a terminal, every record, libraries' included, is one line of JSON in UTC."""
    enrolled, slow, boom = map(json.loads, output(fmt).splitlines())
    assert enrolled["event"] == "pod enrolled"
    assert (enrolled["level"], enrolled["count"]) == ("info", 3)
    assert datetime.fromisoformat(enrolled["timestamp"]).tzinfo == UTC
    assert (slow["event"], slow["level"], slow["logger"]) == (
        "slow\ncallback",
        "warning",
        "asyncio",
    )
    assert boom["exception"].endswith("ValueError: bad\x1b[31m\nvalue")
    assert boom["exception"].count("Traceback") == 1


def test_for_people_nothing_unprintable_is_written() -> None:
    """Pods' words reach the terminal spelled out, and cannot pose as lines of their own."""
    text = output("console")
    assert "pod enrolled" in text
    assert r"shop/web\x1b[2J\u202e" in text
    assert r"slow\ncallback" in text
    assert text.replace("\n", "").isprintable()
    own = [line for line in text.splitlines() if not line.startswith("    ")]
    assert len(own) == 3
    assert text.count("Traceback") == 1


def test_lines_below_the_level_are_left_out() -> None:
    """The level holds for the agent's records and the libraries' alike."""
    assert [json.loads(line)["event"] for line in output("json", "error").splitlines()] == ["boom"]
    assert "not shown" in output("json", "debug")


def test_a_terminal_gets_lines_for_people() -> None:
    """Standard error on a terminal is for a person, unless told otherwise."""
    ours, theirs = pty.openpty()
    with open(ours, "rb", buffering=0) as terminal:
        with open(theirs, "wb", buffering=0) as stderr:
            program = [sys.executable, "-c", _PROGRAM, "error", "auto"]
            subprocess.run(program, stderr=stderr, check=True, timeout=PATIENCE)
        text = os.read(terminal.fileno(), 65536).decode()
    assert "boom" in text
    assert not text.lstrip().startswith("{")
