"""Wherever the version is named besides `nodeagent/__init__.py`, it is the same."""

import re

from nodeagent import __version__
from tests.docs.texts import ROOT, texts


def test_images_have_the_version() -> None:
    """Manifests and pages name the image of this version, and no other."""
    tags = {
        path.relative_to(ROOT).as_posix(): set(re.findall(r"\bnodeagent:(\d[\w.-]*\w)", text))
        for path in texts("deploy", "docs")
        if "nodeagent:" in (text := path.read_text())
    }
    assert tags["deploy/base/daemonset.yaml"] == {__version__}
    assert {name: found for name, found in tags.items() if found - {__version__}} == {}


def test_the_chart_has_the_version() -> None:
    chart = (ROOT / "deploy/chart/Chart.yaml").read_text()
    assert re.findall(r"(?m)^(?:appV|v)ersion: (.*)$", chart) == [__version__, __version__]


def test_the_changelog_has_the_version() -> None:
    assert f"\n## [{__version__}] - 2" in (ROOT / "CHANGELOG.md").read_text()
