"""docs/lessons.md: each lesson has tests that guard it, and each number in use is a lesson."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.docs.texts import ROOT, texts

_PAGE = ROOT / "docs/lessons.md"


def _lessons() -> dict[str, list[str]]:
    """The table: by the lesson's number the tests that its last column names."""
    found = {}
    for line in _PAGE.read_text().splitlines():
        if row := re.fullmatch(r"\| (L\d+) \|.*\|([^|]*)\|", line):
            number, guards = row.groups()
            assert number not in found, f"{number} is there twice"
            found[number] = re.findall(r"`([^`]+)`", guards)
    return found


LESSONS = _lessons()


def _numbers(text: str) -> set[str]:
    """The lessons that a text names, such as ``L4``, or ``L11 to L14``."""
    named = {int(number) for number in re.findall(r"\bL(\d+)\b", text)}
    for first, last in re.findall(r"\bL(\d+) to L(\d+)\b", text):
        named.update(range(int(first), int(last) + 1))
    return {f"L{number}" for number in named}


@cache
def _tests(path: Path) -> dict[str, str]:
    """The tests of a file, each with what names its lessons: its own text, and the file's head."""
    source = path.read_text()
    module = ast.parse(source)
    head = ast.get_docstring(module) or ""
    return {
        node.name: f"{head}\n{ast.get_source_segment(source, node)}"
        for node in module.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def _complaints(number: str, guards: list[str]) -> Iterator[str]:
    if not 1 <= len(guards) <= 3:
        yield f"one to three tests are to guard {number}, not {len(guards)}"
    for guard in guards:
        path, _, name = guard.partition("::")
        if not (ROOT / path).is_file() or name not in _tests(ROOT / path):
            yield f"there is no test {guard}"
        elif number not in _numbers(_tests(ROOT / path)[name]):
            yield f"{guard} does not name {number}, which it is to guard"


def test_the_table_is_read() -> None:
    """The number of lines tells that none is passed over because of its form."""
    rows = [line for line in _PAGE.read_text().splitlines() if line.startswith("| L")]
    assert len(LESSONS) == len(rows) >= 42


@pytest.mark.parametrize("number", LESSONS)
def test_each_lesson_is_guarded(number: str) -> None:
    assert list(_complaints(number, LESSONS[number])) == []


def test_each_number_in_use_is_a_lesson() -> None:
    unknown = [
        f"{path.relative_to(ROOT)}: {number}"
        for path in texts("nodeagent", "ztunnel_stub", "deploy", "docs", "tests")
        if path != _PAGE and not path.is_relative_to(Path(__file__).parent)
        for number in _numbers(path.read_text())
        if number not in LESSONS
    ]
    assert unknown == []
