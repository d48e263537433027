"""docs/metrics.md is what the definitions say, and the definitions are what is exposed."""

from nodeagent.metrics import definitions as the
from nodeagent.metrics.counting import Metrics
from nodeagent.metrics.definitions import SECTIONS, Kind
from nodeagent.metrics.reference import reference
from tests.docs.texts import ROOT

ALL = [definition for section in SECTIONS.values() for definition in section]


def test_the_page_is_current() -> None:
    """`make docs-metrics` makes it."""
    assert (ROOT / "docs/metrics.md").read_text() == reference()


def test_names_follow_prometheus_conventions() -> None:
    """A counter ends in _total, a time is in seconds, and everything is said once."""
    for definition in ALL:
        assert definition.name.endswith("_total") == (definition.kind is Kind.COUNTER)
        assert definition.name.endswith("_seconds") == ("_duration_" in definition.name) or (
            definition.name.endswith("_age_seconds")
        )
        assert bool(definition.buckets) == (definition.kind is Kind.HISTOGRAM)
    assert len({definition.name for definition in ALL}) == len(ALL)


def test_what_is_counted_is_defined() -> None:
    """No figure is exposed that the page does not have, nor with other labels."""
    metrics = Metrics()
    metrics.plugin_request(200)
    defined = {definition.name.removesuffix("_total"): definition for definition in ALL}
    for family in metrics.registry.collect():
        if family.name.startswith("process_"):
            continue
        definition = defined[family.name]
        assert family.type == definition.kind.value
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == set(definition.labels)
    assert the.PODS in ALL
