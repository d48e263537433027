"""The chart in `deploy/chart`: what it renders, and that a real API server takes it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from nodeagent import __version__
from nodeagent.config import SETTINGS, load
from tests.cluster.client import Object
from tests.cluster.control_plane import ControlPlane
from tests.cluster.manifests import (
    ACCOUNT,
    DEPLOY,
    NAMESPACE,
    ChartError,
    apply,
    build,
    lint,
    render,
)

pytestmark = pytest.mark.usefixtures("chart")

MATRIX: Mapping[str, Mapping[str, object]] = {
    "default": {},
    "iptables": {"global": {"nativeNftables": False}},
    "host network": {"ambient": {"shareHostNetworkNamespace": True}},
    "everything else": {
        "image": "registry.test/nodeagent:1",
        "hub": "docker.io/istio",
        "tag": "1.31.0",
        "excludeNamespaces": ["kube-system", "infra"],
        "ambient": {"dnsCapture": False, "ipv6": False, "reconcileIptablesOnStartup": False},
        "chained": False,
        "cniConfFileName": "10-x.conflist",
        "istioOwnedCNIConfig": False,
        "istioOwnedCNIConfigFileName": "01-a.conflist",
        "logging": {"level": "default:info,cni:debug"},
        "env": {"VERIFY_INTERVAL": 30, "REMOVE_STARTUP_TAINT": False, "NODE_NAME": "fixed"},
        "podAnnotations": {"a": "b"},
        "podLabels": {"c": "d"},
        "tolerations": [],
        "affinity": {
            "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {
                    "nodeSelectorTerms": [
                        {"matchExpressions": [{"key": "x", "operator": "Exists"}]}
                    ]
                }
            }
        },
        "resources": {"requests": {"cpu": "1"}, "limits": {"memory": "1Gi"}},
        "resourceQuotas": {"enabled": True, "pods": 5000},
        "networkPolicy": {"enabled": True},
        "seLinuxOptions": {},
        "seccompProfile": {},
        "global": {"imagePullPolicy": "Always", "imagePullSecrets": ["s"], "logAsJson": False},
        "capabilities": {"netRaw": False, "dacOverride": False},
        "letThroughNamespaces": ["registry"],
        "startupTaint": {"enabled": True, "key": "example.test/not-ready"},
        "uninstall": {"releasePods": True, "removalGrace": 7.5},
    },
    "revision": {"revision": "canary"},
    "gke": {"platform": "gke"},
    "k3s": {"global": {"platform": "k3s"}},
    "microk8s": {"platform": "microk8s"},
    "minikube": {"platform": "minikube", "cniNetnsDir": "/var/run/docker/netns"},
    "openshift": {"platform": "openshift", "cniNetnsDir": "/elsewhere/netns"},
    "ambient off": {"ambient": {"enabled": False}},
}
_VALUES = pytest.mark.parametrize("values", MATRIX.values(), ids=MATRIX.keys())
_PROGRAMS_SETTINGS = {"XTABLES_LOCKFILE"}


def _of_kind(documents: list[Object], kind: str) -> Object:
    [found] = [each for each in documents if each["kind"] == kind]
    return found


def _pod(documents: list[Object]) -> Object:
    spec: Object = _of_kind(documents, "DaemonSet")["spec"]["template"]["spec"]
    return spec


def _environ(documents: list[Object]) -> dict[str, Any]:
    [container] = _pod(documents)["containers"]
    pairs = [(each["name"], each.get("value", each.get("valueFrom"))) for each in container["env"]]
    assert len(dict(pairs)) == len(pairs), "a variable is there twice"
    return dict(pairs)


@_VALUES
def test_helm_lint(values: Mapping[str, object]) -> None:
    """Neither an error nor a warning."""
    lint(values)


@_VALUES
def test_the_server_takes_it(deployed: ControlPlane, values: Mapping[str, object]) -> None:
    """Each object is taken to the last field, and the pod that comes of it is admitted."""
    documents = render(values)
    admin = deployed.admin
    try:
        apply(admin, documents)
        template = _of_kind(documents, "DaemonSet")["spec"]["template"]
        name = f"{_of_kind(documents, 'DaemonSet')['metadata']['name']}-abcde"
        metadata = {"name": name, "namespace": NAMESPACE, **template["metadata"]}
        admin.apply({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {
            **template["spec"], "nodeName": "n"}})  # fmt: skip
        admin.delete(f"/api/v1/namespaces/{NAMESPACE}/pods/{name}", grace=0)
    finally:
        for document in documents:
            if document["kind"] not in ("ServiceAccount", "ConfigMap"):
                admin.delete(admin.path_of(document, namespace=NAMESPACE))
        # Chart and base give their objects the same names, and other tests need the base's.
        apply(admin, build(DEPLOY / "base"))


@_VALUES
def test_the_agent_takes_its_settings(values: Mapping[str, object]) -> None:
    """Each variable is a setting of the agent, with a value that can be meant."""
    given = {name: text for name, text in _environ(render(values)).items() if isinstance(text, str)}
    assert given.keys() <= {setting.variable for setting in SETTINGS} | _PROGRAMS_SETTINGS
    load({}, given)


@_VALUES
def test_the_named_directories_are_mounted(values: Mapping[str, object]) -> None:
    """What the settings name is the host's directory of that name, below the prefix."""
    documents = render(values)
    environ, spec = _environ(documents), _pod(documents)
    paths = {each["name"]: each["hostPath"]["path"] for each in spec["volumes"]}
    mounts = spec["containers"][0]["volumeMounts"]
    assert {each["name"] for each in mounts} == paths.keys()
    inside = {each["mountPath"]: paths[each["name"]] for each in mounts}
    for name in ("CNI_NET_DIR", "CNI_BIN_DIR"):
        wanted = "/host" + environ[name]
        points = [each for each in inside if wanted == each or wanted.startswith(f"{each}/")]
        point = max(points, key=len)
        assert point == "/host" + inside[point]


def _counted(documents: list[Object], kind: str) -> list[Object]:
    """The objects of a kind without what differs between the two ways to install."""
    found = [each for each in documents if each["kind"] == kind]
    for each in found:
        each["metadata"].pop("labels", None)
    return found


def test_default_is_the_base() -> None:
    """What `deploy/base` has and what the chart renders without values is the same."""
    base, chart = build(DEPLOY / "base"), render()
    assert _environ(chart) == _environ(base)
    for documents in (base, chart):
        [container] = _pod(documents)["containers"]
        container["env"] = []
        container["securityContext"]["capabilities"]["add"].sort()
    _pod(base).setdefault("hostNetwork", False)
    for kind in ("DaemonSet", "ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role",
                 "RoleBinding", "ValidatingAdmissionPolicyBinding"):  # fmt: skip
        assert _counted(chart, kind) == _counted(base, kind), kind
    # Folded text keeps some of its line breaks in one and not in the other.
    first, second = (
        json.dumps(
            _of_kind(each, "ValidatingAdmissionPolicy")["spec"]["validations"], sort_keys=True
        )
        .replace("\\n", " ")
        .split()
        for each in (base, chart)
    )
    assert first == second
    assert {each["kind"] for each in chart} == {each["kind"] for each in base}


@_VALUES
def test_nothing_shared_is_in_it(values: Mapping[str, object]) -> None:
    """L32: `helm uninstall` deletes what is the agent's own, by kind and name."""
    for document in render(values):
        assert document["metadata"]["name"].startswith("nodeagent")
        assert document["kind"] not in ("Namespace", "CustomResourceDefinition", "PriorityClass")


def test_values_take_effect() -> None:
    """What a values file for istio-cni says is what the agent gets."""
    documents = render(MATRIX["everything else"])
    spec, environ = _pod(documents), _environ(documents)
    [container] = spec["containers"]
    assert container["image"] == "registry.test/nodeagent:1"
    assert container["imagePullPolicy"] == "Always"
    assert not {"NET_RAW", "DAC_OVERRIDE"} & set(
        container["securityContext"]["capabilities"]["add"]
    )
    assert spec["terminationGracePeriodSeconds"] == 68
    assert "tolerations" not in spec
    expected = {
        "AMBIENT_DNS_CAPTURE": "false",
        "AMBIENT_IPV6": "false",
        "CHAINED_CNI_PLUGIN": "false",
        "CNI_CONF_NAME": "10-x.conflist",
        "CNI_LET_THROUGH_NAMESPACES": "registry",
        "EXCLUDE_NAMESPACES": "kube-system,infra",
        "ISTIO_OWNED_CNI_CONFIG": "false",
        "ISTIO_OWNED_CNI_CONFIG_FILENAME": "01-a.conflist",
        "LOG_FORMAT": "console",
        "LOG_LEVEL": "debug",
        "NODE_NAME": "fixed",
        "RELEASE_PODS_ON_UNINSTALL": "true",
        "REMOVAL_GRACE": "7.5",
        "REMOVE_STARTUP_TAINT": "false",
        "STARTUP_TAINT": "example.test/not-ready",
        "VERIFY_INTERVAL": "30",
    }
    assert {name: environ[name] for name in expected} == expected
    assert _of_kind(documents, "ServiceAccount")["imagePullSecrets"] == [{"name": "s"}]
    assert _of_kind(documents, "ResourceQuota")["spec"]["hard"] == {"pods": "5000"}
    named = {each["metadata"]["name"] for each in render(MATRIX["revision"])}
    assert all(name.startswith("nodeagent-canary") for name in named)


def test_images_of_istio_are_not_the_agents() -> None:
    """A values file that names Istio's registry and version does not start Istio's agent."""
    documents = render({"hub": "docker.io/istio", "tag": "1.31.0", "image": "install-cni"})
    assert _pod(documents)["containers"][0]["image"] == f"nodeagent:{__version__}"


def test_older_servers() -> None:
    """What a server before Kubernetes 1.30 does not know is left out."""
    documents = render(kubernetes="v1.29.0")
    assert not any("Admission" in each["kind"] for each in documents)
    [container] = _pod(documents)["containers"]
    assert "appArmorProfile" not in container["securityContext"]


def test_pod_monitor() -> None:
    """It asks the port of that name for metrics."""
    documents = render({"podMonitor": {"enabled": True}})
    [endpoint] = _of_kind(documents, "PodMonitor")["spec"]["podMetricsEndpoints"]
    ports = {
        each["name"]: each["containerPort"] for each in _pod(documents)["containers"][0]["ports"]
    }
    assert ports[endpoint["port"]] == 15014


@pytest.mark.parametrize(
    "values",
    [
        {"ambiant": {}},
        {"ambient": {"enabled": "yes"}},
        {"ambient": {"dnscapture": True}},
        {"excludeNamespaces": ["Not A Name"]},
        {"cniConfDir": "etc/cni/net.d"},
        {"cniConfFileName": "dir/10-x.conflist"},
        {"logging": {"level": "loud"}},
        {"global": {"logging": {"level": "default:loud"}}},
        {"platform": "windows"},
        {"revision": "A_B"},
        {"env": {"lower": "x"}},
        {"resourceQuotas": {"pods": 0}},
        {"uninstall": {"removalGrace": -1}},
    ],
)
def test_what_cannot_be_meant(values: Mapping[str, object]) -> None:
    """A value that cannot be meant, or a name that is none, is refused before anything is made."""
    with pytest.raises(ChartError, match="values don't meet the specifications of the schema"):
        render(values)


def test_schema_has_every_value(chart: Path) -> None:
    """Each default is in the schema, so that a slip in its name is told."""
    values = yaml.safe_load((chart / "values.yaml").read_text())
    schema = json.loads((chart / "values.schema.json").read_text())
    assert values.keys() <= schema["properties"].keys()
    assert yaml.safe_load((chart / "Chart.yaml").read_text())["appVersion"] == __version__
    assert ACCOUNT == "nodeagent"
