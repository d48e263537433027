"""What a text of the repository points to is there: links, anchors, and files that it names."""

import itertools
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from tests.docs.texts import ROOT, named_files, pages, texts

_PLACES = (ROOT, ROOT / "nodeagent", ROOT / "docs")
"""Where a file may be that a text names by its path: `mesh/pod.py` is in `nodeagent`."""


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def _tokens(page: Path) -> tuple[Token, ...]:
    """The page's block tokens and, after each block with text in it, those of its text."""
    blocks = MarkdownIt("commonmark").enable("table").parse(page.read_text())
    return tuple(each for block in blocks for each in (block, *(block.children or ())))


def _targets(page: Path) -> Iterator[str]:
    for token in _tokens(page):
        if target := token.attrGet("href") or token.attrGet("src"):
            yield str(target)


@cache
def _anchors(page: Path) -> frozenset[str]:
    """What a link may have after ``#``, as GitHub makes it of the headings."""
    found: set[str] = set()
    tokens = _tokens(page)
    for opened, heading in itertools.pairwise(tokens):
        if opened.type == "heading_open":
            letters = re.sub(r"[^\w\- ]", "", heading.content.replace("`", "").lower())
            plain = anchor = letters.replace(" ", "-")
            number = 0
            while anchor in found:
                number += 1
                anchor = f"{plain}-{number}"
            found.add(anchor)
    return frozenset(found)


def _is_broken(page: Path, target: str) -> bool:
    where = urlsplit(target)
    if where.scheme or where.netloc:
        return False
    file = (page.parent / unquote(where.path)).resolve() if where.path else page
    if not file.exists() or not file.is_relative_to(ROOT):
        return True
    return bool(where.fragment) and (file.suffix != ".md" or where.fragment not in _anchors(file))


def _is_there(name: str, *places: Path) -> bool:
    return any(
        list(place.glob(name)) if "*" in name else (place / name).exists() for place in places
    )


def test_pages_are_found() -> None:
    assert {"README.md", "docs/architecture.md", "deploy/kind/README.md"} <= set(
        map(_name, pages())
    )
    assert "when-a-node-comes-up-and-the-agent-does-not" in _anchors(ROOT / "docs/cni.md")


@pytest.mark.parametrize("page", pages(), ids=_name)
def test_links_lead_somewhere(page: Path) -> None:
    assert [target for target in _targets(page) if _is_broken(page, target)] == []


@pytest.mark.parametrize("page", pages(), ids=_name)
def test_code_that_a_page_names_exists(page: Path) -> None:
    """In backticks: Python files and folders; on the architecture's page, whatever has a slash."""
    everything = page.name == "architecture.md"
    code = [token.content for token in _tokens(page) if token.type == "code_inline"]
    paths = [
        path
        for path in code
        if re.fullmatch(r"[a-z_][\w./*-]*", path)
        and (path.endswith((".py", "/")) or (everything and "/" in path))
    ]
    assert [path for path in paths if not _is_there(path, ROOT, ROOT / "nodeagent")] == []


def test_pages_that_code_names_exist() -> None:
    """A comment or docstring sends nobody to a page that is not in the repository."""
    lost = [
        f"{_name(path)}: {name}"
        for path in (*texts(), ROOT / "Makefile", ROOT / "pyproject.toml")
        for name in named_files(path.read_text(), ".md")
        if not _is_there(name, path.parent, *_PLACES)
    ]
    assert lost == []
