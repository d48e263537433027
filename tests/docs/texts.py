"""The repository's text files, as the tests of its documentation read them."""

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
_FOLDERS = ("nodeagent", "ztunnel_stub", "proto", "deploy", "docs", "tests")
_SUFFIXES = {".py", ".c", ".h", ".proto", ".md", ".yaml", ".toml", ".sh", ""}


def texts(*folders: str) -> Iterator[Path]:
    """Every text file of these top-level folders, or of all."""
    for folder in folders or _FOLDERS:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in _SUFFIXES and path.is_file() and _is_text(path):
                yield path


def pages() -> list[Path]:
    """Every Markdown file of the repository."""
    return sorted([*ROOT.glob("*.md"), *(path for path in texts() if path.suffix == ".md")])


def _is_text(path: Path) -> bool:
    return b"\0" not in path.read_bytes()[:4096]


def named_files(text: str, suffix: str) -> Iterator[str]:
    """Words in `text` that end in `suffix`, such as ``docs/zds.md``; no addresses on the web."""
    for word in re.findall(r"[\w./:@-]+", text):
        name = word.rstrip(".:")
        if name.endswith(suffix) and "//" not in name and name != suffix:
            yield name
