"""deploy/monitoring/rules.yaml: Prometheus takes it, and it fires when it should and only then."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import yaml

from nodeagent.metrics.definitions import SECTIONS
from tests.cluster.manifests import DEPLOY
from tests.docs.texts import ROOT

RULES = DEPLOY / "monitoring" / "rules.yaml"
TESTS = Path(__file__).with_name("alerts.yaml")


def alerts() -> list[dict[str, Any]]:
    rules = yaml.safe_load(RULES.read_text())
    return [rule for group in rules["groups"] for rule in group["rules"]]


def test_alerts_fire_when_they_should(promtool: str, tmp_path: Path) -> None:
    for file in (RULES, TESTS):
        shutil.copy(file, tmp_path)
    for command in (["check", "rules", "rules.yaml"], ["test", "rules", "alerts.yaml"]):
        ran = subprocess.run(
            [promtool, *command], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr


def test_every_alert_is_tested() -> None:
    text = TESTS.read_text()
    assert {alert["alert"] for alert in alerts()} == set(re.findall(r"alertname: (\w+)", text))


def test_alerts_ask_for_figures_that_there_are() -> None:
    names = {each.name for section in SECTIONS.values() for each in section}
    for alert in alerts():
        assert set(re.findall(r"nodeagent_\w+", alert["expr"])) <= names, alert["alert"]


def test_every_alert_has_its_place_in_the_docs() -> None:
    """Its name is there, too, for those who search."""
    for alert in alerts():
        page, _, anchor = alert["annotations"]["runbook"].partition("#")
        text = (ROOT / page).read_text()
        titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
        assert anchor in {re.sub(r"[^\w -]", "", t).lower().replace(" ", "-") for t in titles}
        assert f"`{alert['alert']}`" in text
