"""Which nodes a DaemonSet selects, by the names and labels of the nodes."""

import re
from collections.abc import Mapping
from typing import Any, get_args

from nodeagent.mesh.selector import Operator, Requirement

Object = Mapping[str, Any]
_Labels = Mapping[str, str]

_INTEGER = re.compile(r"[+-]?[0-9]{1,19}")
_NAME_FIELD = "metadata.name"


class UnknownConditionError(Exception):
    """A condition of a kind that this code does not know."""


def selects(daemonset: Object, node: Object) -> bool:
    """Whether the DaemonSet wants a pod on the node.

    Taints are left out: a node that is drained or not ready keeps its agent's work.
    Raises ``UnknownConditionError``; ``LookupError``, ``TypeError`` or ``AttributeError``
    for objects in another shape.
    """
    spec: Object = daemonset["spec"]["template"]["spec"]
    name: str = node["metadata"]["name"]
    labels: _Labels = node["metadata"].get("labels") or {}
    if spec.get("nodeName", name) != name:
        return False
    selector: _Labels = spec.get("nodeSelector") or {}
    if any(labels.get(key) != value for key, value in selector.items()):
        return False
    affinity: Object = (spec.get("affinity") or {}).get("nodeAffinity") or {}
    required: Object | None = affinity.get("requiredDuringSchedulingIgnoredDuringExecution")
    if required is None:
        return True
    return any(_term_matches(term, name, labels) for term in required["nodeSelectorTerms"])


def _term_matches(term: Object, name: str, labels: _Labels) -> bool:
    expressions = term.get("matchExpressions") or []
    fields = term.get("matchFields") or []
    for field in fields:
        if field.get("key") != _NAME_FIELD:
            raise UnknownConditionError(f"matchFields has the unknown field {field.get('key')!r}")
    # A term without conditions matches nothing (Kubernetes' API reference, NodeSelectorTerm).
    # Each condition is looked at, so that an unknown one is noticed behind one that fails.
    return bool(expressions or fields) and all(
        [
            *(_holds(each, labels) for each in expressions),
            *(_holds(each, {_NAME_FIELD: name}) for each in fields),
        ]
    )


def _holds(condition: Object, labels: _Labels) -> bool:
    key, operator, values = condition["key"], condition["operator"], condition.get("values") or []
    if operator in get_args(Operator):
        return Requirement(key, operator, tuple(values)).matches(labels)
    if operator in ("Gt", "Lt"):
        difference = _difference(labels.get(key), values)
        return difference > 0 if operator == "Gt" else difference < 0
    raise UnknownConditionError(f"node affinity has the unknown operator {operator!r}")


def _difference(value: str | None, values: list[str]) -> int:
    """The label's number minus the limit; 0 where the label is not there or no number."""
    if len(values) != 1 or not _INTEGER.fullmatch(values[0]):
        raise UnknownConditionError(f"node affinity compares with {values!r}, which is no integer")
    if value is None or not _INTEGER.fullmatch(value):
        return 0
    return int(value) - int(values[0])
