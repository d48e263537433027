"""Label selectors as users write them."""

import pytest

from nodeagent.mesh.selector import parse_enablement


@pytest.mark.parametrize(
    ("expression", "labels", "matches"),
    [
        ("{key: a, operator: In, values: [x, z]}", {"a": "x"}, True),
        ("{key: a, operator: In, values: [x]}", {}, False),
        ("{key: a, operator: NotIn, values: [x]}", {}, True),
        ("{key: a, operator: NotIn, values: [x]}", {"a": "x"}, False),
        ("{key: a, operator: Exists}", {"a": ""}, True),
        ("{key: a, operator: Exists}", {}, False),
        ("{key: a, operator: DoesNotExist}", {"a": "x"}, False),
        ("{key: a, operator: DoesNotExist}", {}, True),
    ],
)
def test_expressions(expression: str, labels: dict[str, str], matches: bool) -> None:
    """Each operator of the Kubernetes grammar means what it means there."""
    (pair,) = parse_enablement(f"- podSelector: {{matchExpressions: [{expression}]}}")
    assert pair.pods.matches(labels) is matches
    assert pair.namespaces.matches({})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "not YAML"),
        ("{}", "expected a list"),
        ("[]", "expected a list"),
        ("- podselector: {}", "entry 1: 'podselector' is none of namespaceSelector, podSelector"),
        ("- podSelector: {matchLabels: {a: true}}", "matchLabels.a: True is not a string"),
        ("- podSelector: {matchLabels: {'a b': x}}", "'a b' is not a label key"),
        ("- podSelector: {matchLabels: {a: 'x y'}}", "'x y' is not a label value"),
        ("- podSelector: {matchExpressions: {}}\n- podSelector: []", "entry 2: podSelector"),
        (
            "- podSelector: {matchExpressions: [{key: a, operator: in, values: [x]}]}",
            "matchExpressions[0].operator: 'in' is none of",
        ),
        (
            "- podSelector: {matchExpressions: [{key: a, operator: In}]}",
            "matchExpressions[0].values: In and NotIn need values",
        ),
    ],
)
def test_wrong_selectors(text: str, message: str) -> None:
    """A selector that cannot be right is refused with the entry and the field."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the text is compared below
        parse_enablement(text)
    assert message in str(caught.value)
