"""Label selectors as in Kubernetes, and pairs of them that select pods for the mesh.

A pair selects the pods that match its one half in the namespaces that match the other.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import yaml

Labels = Mapping[str, str]
Operator = Literal["In", "NotIn", "Exists", "DoesNotExist"]

_OPERATORS: dict[str, Callable[[str | None, Sequence[str]], bool]] = {
    "In": lambda value, values: value in values,
    # A label that is absent is "not in": apimachinery's labels.Requirement.Matches.
    "NotIn": lambda value, values: value not in values,
    "Exists": lambda value, _: value is not None,
    "DoesNotExist": lambda value, _: value is None,
}
# https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#syntax-and-character-set
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")
_PREFIX = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class Requirement:
    """One condition on one label."""

    key: str
    operator: Operator
    values: tuple[str, ...] = ()

    def matches(self, labels: Labels) -> bool:
        """Whether `labels` meet the condition."""
        return _OPERATORS[self.operator](labels.get(self.key), self.values)

    def __str__(self) -> str:
        match self.operator:
            case "In" if len(self.values) == 1:
                return f"{self.key}={self.values[0]}"
            case "NotIn" if len(self.values) == 1:
                return f"{self.key}!={self.values[0]}"
            case "Exists":
                return self.key
            case "DoesNotExist":
                return f"!{self.key}"
            case _:
                return f"{self.key} {self.operator.lower()} ({','.join(self.values)})"


@dataclass(frozen=True, slots=True)
class LabelSelector:
    """All of its requirements must hold; without any, everything matches."""

    requirements: tuple[Requirement, ...] = ()

    def matches(self, labels: Labels) -> bool:
        """Whether every requirement holds for `labels`."""
        return all(requirement.matches(labels) for requirement in self.requirements)

    def __str__(self) -> str:
        return ",".join(map(str, self.requirements)) or "everything"


@dataclass(frozen=True, slots=True)
class Enablement:
    """Enables the pods that match one half in the namespaces that match the other."""

    pods: LabelSelector
    namespaces: LabelSelector


EnablementSelectors = tuple[Enablement, ...]

_MODE = "istio.io/dataplane-mode"
DEFAULT_ENABLEMENT: EnablementSelectors = (
    Enablement(
        pods=LabelSelector((Requirement(_MODE, "In", ("ambient",)),)),
        namespaces=LabelSelector(),
    ),
    Enablement(
        pods=LabelSelector((Requirement(_MODE, "NotIn", ("none",)),)),
        namespaces=LabelSelector((Requirement(_MODE, "In", ("ambient",)),)),
    ),
)
"""What Istio's chart sets unless the user sets something else."""


def parse_enablement(text: str) -> EnablementSelectors:
    """Read the YAML list of ``podSelector`` / ``namespaceSelector`` pairs.

    Raises ``ValueError`` that names the entry and the field at fault: a selector
    that is read wrongly would enroll the wrong pods.
    """
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(document, list) or not document:
        raise ValueError("expected a list of podSelector/namespaceSelector pairs")
    return tuple(_enablement(entry, f"entry {n}") for n, entry in enumerate(document, 1))


def _enablement(entry: object, where: str) -> Enablement:
    fields = _mapping(entry, where, {"podSelector", "namespaceSelector"})
    return Enablement(
        pods=_selector(fields.get("podSelector"), f"{where}: podSelector"),
        namespaces=_selector(fields.get("namespaceSelector"), f"{where}: namespaceSelector"),
    )


def _selector(value: object, where: str) -> LabelSelector:
    fields = _mapping(value, where, {"matchLabels", "matchExpressions"})
    labels = _mapping(fields.get("matchLabels"), f"{where}.matchLabels")
    expressions = fields.get("matchExpressions") or []
    if not isinstance(expressions, list):
        raise ValueError(f"{where}.matchExpressions: expected a list")
    equalities = tuple(
        Requirement(
            _key(key, f"{where}.matchLabels"), "In", (_value(text, f"{where}.matchLabels.{key}"),)
        )
        for key, text in labels.items()
    )
    return LabelSelector(
        equalities
        + tuple(
            _requirement(expression, f"{where}.matchExpressions[{n}]")
            for n, expression in enumerate(expressions)
        )
    )


def _requirement(value: object, where: str) -> Requirement:
    fields = _mapping(value, where, {"key", "operator", "values"})
    operator = fields.get("operator")
    if operator not in _OPERATORS:
        raise ValueError(
            f"{where}.operator: {operator!r} is none of In, NotIn, Exists, DoesNotExist"
        )
    values = fields.get("values") or []
    if not isinstance(values, list):
        raise ValueError(f"{where}.values: expected a list")
    if bool(values) != (operator in {"In", "NotIn"}):
        raise ValueError(f"{where}.values: In and NotIn need values, Exists and DoesNotExist none")
    return Requirement(
        _key(fields.get("key"), f"{where}.key"),
        cast("Operator", operator),
        tuple(_value(value, f"{where}.values") for value in values),
    )


def _mapping(value: object, where: str, allowed: set[str] | None = None) -> dict[str, object]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError(f"{where}: expected a mapping, got {value!r}")
    for key in value:
        if allowed is not None and key not in allowed:
            raise ValueError(f"{where}: {key!r} is none of {', '.join(sorted(allowed))}")
    return value


def _key(value: object, where: str) -> str:
    prefix, slash, name = value.rpartition("/") if isinstance(value, str) else ("", "", "")
    if not _NAME.fullmatch(name) or (slash and not _PREFIX.fullmatch(prefix)):
        raise ValueError(f"{where}: {value!r} is not a label key")
    return cast("str", value)


def _value(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{where}: {value!r} is not a string (quote it)")
    if value and not _NAME.fullmatch(value):
        raise ValueError(f"{where}: {value!r} is not a label value")
    return value
