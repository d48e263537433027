"""What is kept of the API's objects."""

import copy
import gc
import json
import tracemalloc
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.cluster.projection import (
    ProjectionError,
    controller,
    deleting,
    name,
    namespace,
    node_of,
    pod,
    pod_uid,
    taints,
    version,
)
from nodeagent.mesh.pod import LONGEST_ANNOTATION, NETNS_PATH, Namespace, Pod, PodUID

POD: dict[str, Any] = {
    "metadata": {
        "name": "web-0",
        "namespace": "shop",
        "uid": "2c48913c-b29f-11e7-9350-020968147796",
        "labels": {"app": "web"},
        "annotations": {
            "sidecar.istio.io/status": "{}",
            "kubectl.kubernetes.io/last-applied-configuration": "long",
        },
        "managedFields": [{"manager": "kubelet"}],
    },
    "spec": {"nodeName": "n1", "serviceAccountName": "web", "containers": [{"name": "c"}]},
    "status": {"phase": "Running", "podIP": "10.0.0.7", "podIPs": [{"ip": "10.0.0.7"}]},
}


def changed(**parts: dict[str, Any]) -> dict[str, Any]:
    raw = copy.deepcopy(POD)
    for part, values in parts.items():
        raw[part] |= values
    return raw


def test_long_annotation_is_cut() -> None:
    """L34: of 250 KiB in one annotation only the beginning reaches the rest of the agent."""
    raw = changed(metadata={"annotations": {"sidecar.istio.io/status": "x" * 250_000}})
    assert pod(raw).annotations == {"sidecar.istio.io/status": "x" * LONGEST_ANNOTATION}


def test_labels_that_decide_nothing_are_dropped() -> None:
    """L34: a pod with a megabyte of labels costs no memory; those that selectors name stay."""
    raw = changed(metadata={"labels": {"app": "web", **{f"l{n}": "x" for n in range(20_000)}}})
    assert pod(raw, labels={"app"}).labels == {"app": "web"}
    assert namespace(raw, labels={"app"}).labels == {"app": "web"}


def test_pod_is_projected() -> None:
    """L25: of a pod only what the agent decides by is kept."""
    assert pod(POD) == Pod(
        uid=PodUID("2c48913c-b29f-11e7-9350-020968147796"),
        name="web-0",
        namespace="shop",
        labels={"app": "web"},
        annotations={"sidecar.istio.io/status": "{}"},
        addresses=(ip_address("10.0.0.7"),),
        service_account="web",
    )
    assert node_of(POD) == "n1"


def test_pod_at_its_beginning() -> None:
    """A pod that was just made has no address, no phase of note and no labels, and is a pod."""
    raw = {"metadata": {"name": "a", "namespace": "b", "uid": "u"}, "spec": {}, "status": {}}
    assert pod(raw) == Pod(PodUID("u"), "a", "b", phase="Pending")
    assert node_of(raw) == ""


def test_pod_of_two_families() -> None:
    """Both addresses of a dual-stack pod are kept, in the API's order."""
    both = [{"ip": "10.0.0.7"}, {"ip": "fd00::7"}]
    assert pod(changed(status={"podIPs": both})).addresses == (
        ip_address("10.0.0.7"),
        ip_address("fd00::7"),
    )


def test_single_address() -> None:
    """A pod that has only the older field has an address too."""
    assert pod(changed(status={"podIPs": None})).addresses == (ip_address("10.0.0.7"),)


def test_pod_in_deletion() -> None:
    """A pod that is being deleted says so, and is not taken for ended."""
    seen = pod(changed(metadata={"deletionTimestamp": "2026-01-01T00:00:00Z"}))
    assert seen.deleting
    assert not seen.ended


def test_host_network() -> None:
    """A pod in the host's network is known as such."""
    assert pod(changed(spec={"hostNetwork": True})).host_network


def test_tenants_path_is_dropped() -> None:
    """L10: the annotation by which a manifest names a namespace is nothing a tenant can set."""
    assert pod(changed(metadata={"annotations": {NETNS_PATH: "/proc/1/ns/net"}})).annotations == {}


@pytest.mark.parametrize("text", ["127.0.0.1", "::1", "0.0.0.0", "ff02::1", "fe80::1%eth0", "x"])
def test_address_that_proves_nothing(text: str) -> None:
    """L10: an address that every namespace has, or that is none, is refused."""
    with pytest.raises(ProjectionError, match="podIPs"):
        pod(changed(status={"podIPs": [{"ip": text}]}))


def test_namespace_is_projected() -> None:
    """Of a namespace, name and labels are kept."""
    raw = {"metadata": {"name": "shop", "labels": {"a": "b"}, "annotations": {"c": "d"}}}
    assert namespace(raw) == Namespace("shop", {"a": "b"})


texts = st.text(st.characters(), max_size=5) | st.just("\ud800") | st.just("x" * 1000)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)


READERS = (
    pod,
    pod_uid,
    namespace,
    name,
    node_of,
    deleting,
    taints,
    version,
    lambda raw: controller(raw, "DaemonSet"),
)


@pytest.mark.fuzz
@given(json_values, st.sampled_from(["metadata", "spec", "status"]), st.data())
def test_odd_objects(value: Any, part: str, data: st.DataObject) -> None:
    """Whatever stands in a field, an object is projected or refused, and nothing breaks."""
    raw = copy.deepcopy(POD)
    if data.draw(st.booleans()):
        raw[part] = value
    else:
        raw[part][data.draw(st.sampled_from(sorted(POD[part])))] = value
    for project in READERS:
        try:
            project(raw)
        except ProjectionError as error:
            assert len(str(error)) < 200  # noqa: PT017 - it may also pass


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        ("status", "podIPs", 1),
        ("status", "podIPs", {"ip": "10.0.0.7"}),
        ("metadata", "uid", ""),
        ("metadata", "uid", "x" * 300),
        ("metadata", "name", "\ud800"),
        ("metadata", "labels", {"\ud800": "a"}),
        ("metadata", "labels", {"a": "\ud800"}),
    ],
)
def test_odd_field(part: str, field: str, value: object) -> None:
    """A field that no API server sends like this is a ``ProjectionError``, and never a crash."""
    with pytest.raises(ProjectionError):
        pod(changed(**{part: {field: value}}))


def test_null_is_nothing() -> None:
    """A field that is null is one that is not there."""
    assert not deleting(changed(metadata={"deletionTimestamp": None}))
    assert pod(changed(status={"podIPs": None, "podIP": None})).addresses == ()
    assert pod(changed(metadata={"labels": None})).labels == {}


def test_memory_of_namespaces() -> None:
    """L25: five thousand namespaces with ten labels each take less than 2 KiB each."""
    common = {f"example.com/label-{n}": f"a value of some length, {n}" for n in range(9)}
    labels = [json.dumps({"kubernetes.io/metadata.name": f"ns-{n}"} | common) for n in range(5000)]
    gc.collect()
    tracemalloc.start()
    kept = [
        namespace({"metadata": {"name": f"ns-{n}", "labels": json.loads(text)}})
        for n, text in enumerate(labels)
    ]
    gc.collect()  # what was only needed in between, and by other tests' leftovers
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert used / len(kept) < 2048
