"""Who should be enrolled, and why."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.mesh.eligibility import Decision, Policy, Wanted, decide, deciding_labels
from nodeagent.mesh.pod import Namespace, Pod, PodUID
from nodeagent.mesh.selector import DEFAULT_ENABLEMENT, EnablementSelectors, parse_enablement

AMBIENT = {"istio.io/dataplane-mode": "ambient"}
NONE = {"istio.io/dataplane-mode": "none"}
PLAIN = Namespace("shop")
LABELED = Namespace("shop", AMBIENT)
POD = Pod(uid=PodUID("1"), name="web", namespace="shop")
MESH_POD = replace(POD, labels=AMBIENT)


@pytest.mark.parametrize(
    ("pod", "namespace", "wanted", "reason"),
    [
        (POD, PLAIN, Wanted.NO, "no enablement selector matches"),
        (MESH_POD, PLAIN, Wanted.YES, "pod matches istio.io/dataplane-mode=ambient"),
        (POD, LABELED, Wanted.YES, "namespace matches istio.io/dataplane-mode=ambient"),
        (
            replace(POD, labels=NONE),
            LABELED,
            Wanted.NO,
            "pod opted out: istio.io/dataplane-mode=none",
        ),
        (replace(MESH_POD, host_network=True), PLAIN, Wanted.NO, "uses the host's network"),
        (
            replace(MESH_POD, annotations={"sidecar.istio.io/status": "{}"}),
            PLAIN,
            Wanted.NO,
            "has a sidecar (annotation sidecar.istio.io/status)",
        ),
        (
            replace(MESH_POD, namespace="kube-system"),
            Namespace("kube-system", AMBIENT),
            Wanted.NO,
            "namespace kube-system is excluded",
        ),
        (
            replace(MESH_POD, namespace="istio-system", labels=AMBIENT | {"app": "ztunnel"}),
            Namespace("istio-system"),
            Wanted.NO,
            "is ztunnel itself",
        ),
        (replace(MESH_POD, labels=AMBIENT | {"app": "ztunnel"}), PLAIN, Wanted.YES, "pod matches"),
        (replace(MESH_POD, phase="Succeeded"), PLAIN, Wanted.NO, "has ended (phase Succeeded)"),
        (replace(MESH_POD, phase="Failed"), PLAIN, Wanted.NO, "has ended (phase Failed)"),
        (replace(MESH_POD, phase="Pending"), PLAIN, Wanted.YES, "pod matches"),
        (POD, None, Wanted.UNKNOWN, "namespace shop has not been seen yet"),
        (MESH_POD, None, Wanted.YES, "pod matches istio.io/dataplane-mode=ambient"),
        (replace(POD, labels=NONE), None, Wanted.NO, "no enablement selector matches"),
        (replace(POD, host_network=True), None, Wanted.NO, "uses the host's network"),
    ],
)
def test_decision(pod: Pod, namespace: Namespace | None, wanted: Wanted, reason: str) -> None:
    """L16, L26: one function decides for every caller, with a reason; unknown is not "no"."""
    decision = decide(pod, namespace, Policy())
    assert decision.wanted is wanted
    assert decision.reason.startswith(reason)


LABELS = st.dictionaries(
    st.sampled_from(["app", "tier", "istio.io/dataplane-mode", "zone", "other"]),
    st.sampled_from(["ambient", "none", "ztunnel", "a"]),
)
SELECTORS = [
    DEFAULT_ENABLEMENT,
    parse_enablement("[{podSelector: {matchExpressions: [{key: tier, operator: DoesNotExist}]}}]"),
    parse_enablement("[{namespaceSelector: {matchLabels: {zone: a}}}]"),
]


@given(pod=LABELS, namespace=st.none() | LABELS, enablement=st.sampled_from(SELECTORS))
def test_dropped_labels_decide_nothing(
    pod: dict[str, str], namespace: dict[str, str] | None, enablement: EnablementSelectors
) -> None:
    """L34: what a pod source drops of the labels makes no difference to any decision."""
    policy = Policy(enablement=enablement)
    kept = deciding_labels(enablement)

    def decided(*, only: frozenset[str] | None) -> Decision:
        def cut(labels: dict[str, str]) -> dict[str, str]:
            return {key: text for key, text in labels.items() if only is None or key in only}

        where = None if namespace is None else Namespace("istio-system", cut(namespace))
        return decide(replace(POD, namespace="istio-system", labels=cut(pod)), where, policy)

    assert decided(only=kept) == decided(only=None)
