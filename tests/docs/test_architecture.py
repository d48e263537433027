"""docs/architecture.md and the import contracts of pyproject.toml say the same."""

import re
import tomllib

from tests.docs.texts import ROOT


def _layers() -> list[set[str]]:
    """The layers of the package, from the top, as import-linter holds them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    (layers,) = (
        contract["layers"]
        for contract in project["tool"]["importlinter"]["contracts"]
        if contract["type"] == "layers" and contract["containers"] == ["nodeagent"]
    )
    return [set(re.findall(r"\w+", layer)) for layer in layers]


def _picture() -> list[set[str]]:
    """The rooms in each line of the page's first picture."""
    _, picture, *_ = (ROOT / "docs/architecture.md").read_text().split("```")
    lines = [line.partition("│")[2] for line in picture.splitlines()]
    return [rooms for line in lines if (rooms := set(re.findall(r"\w+", line)))]


def test_the_picture_shows_the_layers() -> None:
    assert _picture() == _layers()


def test_every_room_is_in_the_picture() -> None:
    folders = {path.parent.name for path in (ROOT / "nodeagent").glob("*/__init__.py")}
    modules = {path.stem for path in (ROOT / "nodeagent").glob("*.py")}
    assert set.union(*_picture()) == folders | modules - {"__init__", "__main__"}
