"""Which pods belong in the mesh, and why.

This is the only place where that is decided (L26): for pods that run, for sandboxes that
are made, and for what `nodeagent status` says.
"""

from dataclasses import dataclass
from enum import Enum

from nodeagent.mesh.pod import SIDECAR_STATUS, Namespace, Pod
from nodeagent.mesh.selector import (
    DEFAULT_ENABLEMENT,
    Enablement,
    EnablementSelectors,
    Labels,
    LabelSelector,
)

_APP = "app"
"""The label by which ztunnel's own pods are recognized, as Istio's chart sets it."""


RELEASED = "the agent is being uninstalled"
"""The reason of every decision once the agent is being uninstalled."""


NO_SELECTOR = "no enablement selector matches"
OPTED_OUT = "pod opted out"
"""How the reasons of decisions begin that another label would change."""


class Wanted(Enum):
    """Whether a pod belongs in the mesh. Unknown is not the same as no (L16)."""

    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether a pod is wanted in the mesh, with the reason in words."""

    wanted: Wanted
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The settings by which pods are chosen."""

    enablement: EnablementSelectors = DEFAULT_ENABLEMENT
    system_namespace: str = "istio-system"
    excluded_namespaces: frozenset[str] = frozenset({"kube-system"})
    released: bool = False
    """The agent is being uninstalled: no pod is wanted."""


def deciding_labels(enablement: EnablementSelectors) -> frozenset[str]:
    """The keys of the labels by which `decide` decides; a pod source drops the others (L34)."""
    selectors = (half for pair in enablement for half in (pair.pods, pair.namespaces))
    keys = {requirement.key for half in selectors for requirement in half.requirements}
    return frozenset(keys | {_APP})


def decide_by_namespace(name: str, policy: Policy) -> Decision | None:
    """Decide for every pod of the namespace `name` if the name alone is enough for that.

    For these pods the API server need not be asked: nodes start while it is away (L15).
    """
    if name in policy.excluded_namespaces:
        return Decision(Wanted.NO, f"namespace {name} is excluded")
    return None


def decide(pod: Pod, namespace: Namespace | None, policy: Policy) -> Decision:
    """Decide for `pod`; `namespace` is None where it has not been seen yet."""
    if policy.released:
        return Decision(Wanted.NO, RELEASED)
    selected = _selected(pod, namespace, policy.enablement)
    if selected.wanted is Wanted.NO:
        return selected
    if (obstacle := _obstacle(pod, policy)) is not None:
        return Decision(Wanted.NO, obstacle)
    return selected


def evidence(pod: Pod, namespace: Namespace | None, policy: Policy) -> tuple[str, ...]:
    """How `pod` and its namespace fit each pair of enablement selectors, in words."""
    return tuple(
        f"selector {number}: {_fit(pair, pod, namespace)}"
        for number, pair in enumerate(policy.enablement, 1)
    )


def _fit(pair: Enablement, pod: Pod, namespace: Namespace | None) -> str:
    pods = f"pod {_match(pair.pods, pod.labels)}"
    if not pair.namespaces.requirements:
        return f"{pods}, in any namespace"
    if namespace is None:
        return f"{pods}, namespace {pod.namespace} has not been seen yet"
    return f"{pods}, namespace {_match(pair.namespaces, namespace.labels)}"


def _match(selector: LabelSelector, labels: Labels) -> str:
    if selector.matches(labels):
        return f"matches {selector}"
    return f"does not match {selector} ({_why_not(selector, labels)})"


def _selected(pod: Pod, namespace: Namespace | None, enablement: EnablementSelectors) -> Decision:
    opted_out = None
    for pair in enablement:
        pod_matches = pair.pods.matches(pod.labels)
        if not pair.namespaces.requirements:
            if pod_matches:
                return Decision(Wanted.YES, f"pod matches {pair.pods}")
        elif namespace is not None and pair.namespaces.matches(namespace.labels):
            if pod_matches:
                return Decision(Wanted.YES, f"namespace matches {pair.namespaces}")
            opted_out = f"{OPTED_OUT}: {_why_not(pair.pods, pod.labels)}"
    if namespace is None and any(pair.pods.matches(pod.labels) for pair in enablement):
        return Decision(Wanted.UNKNOWN, f"namespace {pod.namespace} has not been seen yet")
    return Decision(Wanted.NO, opted_out or NO_SELECTOR)


def _why_not(selector: LabelSelector, labels: Labels) -> str:
    """What `labels` have that `selector` does not match."""
    keys = dict.fromkeys(one.key for one in selector.requirements if not one.matches(labels))
    return ", ".join(f"{key}={labels[key]}" if key in labels else f"no {key}" for key in keys)


def _obstacle(pod: Pod, policy: Policy) -> str | None:
    """Say why a pod that the labels select is not wanted all the same; None: it is."""
    if pod.host_network:
        return "uses the host's network"
    if SIDECAR_STATUS in pod.annotations:
        return f"has a sidecar (annotation {SIDECAR_STATUS})"
    if (settled := decide_by_namespace(pod.namespace, policy)) is not None:
        return settled.reason
    if pod.namespace == policy.system_namespace and pod.labels.get(_APP) == "ztunnel":
        return "is ztunnel itself"
    if pod.ended:
        return f"has ended (phase {pod.phase})"
    return None
