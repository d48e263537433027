"""Which nodes a DaemonSet selects."""

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.cluster.node_selection import UnknownConditionError, selects

LABELS = {"os": "linux", "zone": "a", "cpus": "16", "empty": ""}


def node(labels: Mapping[str, str] | None = None) -> dict[str, Any]:
    return {"metadata": {"name": "n1", "labels": LABELS if labels is None else labels}}


def daemonset(*terms: Mapping[str, Any], **spec: object) -> dict[str, Any]:
    required = {"nodeSelectorTerms": list(terms)}
    affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}}
    return {"spec": {"template": {"spec": ({"affinity": affinity} if terms else {}) | spec}}}


def term(key: str, operator: str, *values: str) -> dict[str, Any]:
    return {"matchExpressions": [{"key": key, "operator": operator, "values": list(values)}]}


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        (term("os", "In", "linux", "windows"), True),
        (term("os", "In", "windows"), False),
        (term("gone", "In", "linux"), False),
        (term("os", "NotIn", "linux"), False),
        (term("os", "NotIn", "windows"), True),
        (term("gone", "NotIn", "linux"), True),
        (term("empty", "Exists"), True),
        (term("gone", "Exists"), False),
        (term("empty", "DoesNotExist"), False),
        (term("gone", "DoesNotExist"), True),
        (term("cpus", "Gt", "9"), True),
        (term("cpus", "Gt", "16"), False),
        (term("cpus", "Lt", "16"), False),
        (term("cpus", "Lt", "100"), True),
        (term("gone", "Lt", "100"), False),
        (term("gone", "Gt", "-1"), False),
        (term("zone", "Gt", "1"), False),
        ({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]}, True),
        ({"matchFields": [{"key": "metadata.name", "operator": "NotIn", "values": ["n1"]}]}, False),
        ({}, False),
        ({"matchExpressions": [], "matchFields": None}, False),
        (
            term("os", "In", "linux")
            | {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n2"]}]},
            False,
        ),
    ],
)
def test_conditions(condition: Mapping[str, Any], holds: bool) -> None:
    """Each operator of node affinity means what it means to the scheduler."""
    assert selects(daemonset(condition), node()) is holds


@pytest.mark.parametrize(
    ("spec", "selected"),
    [
        ({}, True),
        ({"affinity": None, "nodeSelector": None}, True),
        ({"affinity": {"nodeAffinity": None, "podAffinity": {}}}, True),
        ({"nodeSelector": {"os": "linux", "zone": "a"}}, True),
        ({"nodeSelector": {"os": "linux", "zone": "b"}}, False),
        ({"nodeSelector": {"gone": ""}}, False),
        ({"nodeName": "n1"}, True),
        ({"nodeName": "n2"}, False),
    ],
)
def test_whole_specs(spec: dict[str, Any], selected: bool) -> None:
    """Node selector and node name must hold; what is absent asks for nothing."""
    assert selects(daemonset(**spec), node()) is selected


@pytest.mark.parametrize(
    "condition",
    [
        term("os", "Near", "linux"),
        term("cpus", "Gt", "many"),
        term("cpus", "Gt", "1", "2"),
        {"matchFields": [{"key": "spec.unschedulable", "operator": "In", "values": ["true"]}]},
    ],
)
def test_conditions_of_a_later_kubernetes(condition: Mapping[str, Any]) -> None:
    """L16: a condition that is not understood is no "no"."""
    with pytest.raises(UnknownConditionError):
        selects(daemonset(condition), node())


_KEYS = st.sampled_from(["a", "b", "c"])
_VALUES = st.sampled_from(["", "x", "1", "07", "30"])
_LABELS = st.dictionaries(_KEYS, _VALUES)
_OPPOSITES = st.sampled_from([("In", "NotIn"), ("Exists", "DoesNotExist")])


@given(_LABELS, _KEYS, st.lists(_VALUES, min_size=1), _OPPOSITES)
def test_opposites(
    labels: dict[str, str], key: str, values: list[str], opposites: tuple[str, str]
) -> None:
    """Of two opposite conditions exactly one holds, and either of both always does."""
    one, other = (term(key, operator, *values) for operator in opposites)
    assert selects(daemonset(one), node(labels)) is not selects(daemonset(other), node(labels))
    assert selects(daemonset(one, other), node(labels))


@given(_LABELS, st.lists(st.lists(st.tuples(_KEYS, _VALUES), max_size=2), min_size=1, max_size=3))
def test_terms(labels: dict[str, str], wanted: list[list[tuple[str, str]]]) -> None:
    """One term is enough, and it needs all of its conditions, at least one."""
    terms = [
        {"matchExpressions": [{"key": k, "operator": "In", "values": [v]} for k, v in conditions]}
        for conditions in wanted
    ]
    expected = any(
        conditions and all(labels.get(k) == v for k, v in conditions) for conditions in wanted
    )
    assert selects(daemonset(*terms), node(labels)) is bool(expected)


@given(st.integers(0, 50), st.integers(-50, 50))
def test_comparisons(label: int, limit: int) -> None:
    """Gt and Lt compare numbers, not text."""
    labels = {"a": str(label)}
    above, below = (daemonset(term("a", operator, str(limit))) for operator in ("Gt", "Lt"))
    assert selects(above, node(labels)) is (label > limit)
    assert selects(below, node(labels)) is (label < limit)
