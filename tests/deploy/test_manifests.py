"""The manifests of `deploy/`, given to a real API server."""

import re
from pathlib import Path
from typing import Any

import pytest

from nodeagent import __version__
from nodeagent.config import SETTINGS
from tests.cluster.client import AnswerError, Client, Object
from tests.cluster.control_plane import ControlPlane
from tests.cluster.manifests import ACCOUNT, DEPLOY, NAMESPACE, apply, build
from tests.eventually import eventually

_COMPONENTS = sorted((DEPLOY / "components").iterdir())
_PLATFORMS = ("gke", "k3s")
"""Components for nodes of one kind, which exclude each other."""
_OPTIONS = [path.name for path in _COMPONENTS if path.name not in _PLATFORMS]
_BASES = sorted(path.parent.name for path in DEPLOY.glob("*/kustomization.yaml"))
_OWN = ("nodeagent", "ztunnel-stub")
_PROGRAMS_SETTINGS = {"XTABLES_LOCKFILE"}
"""What the programs that the agent runs read themselves."""

EVERYWHERE = {
    ("get", "", "pods", ""),
    ("list", "", "pods", ""),
    ("watch", "", "pods", ""),
    ("patch", "", "pods/status", ""),
    ("get", "", "namespaces", ""),
    ("list", "", "namespaces", ""),
    ("watch", "", "namespaces", ""),
    ("create", "", "events", ""),
    ("get", "", "nodes", ""),
}
"""Verb, group, resource, name: what the agent's requests are, and no others."""
AT_HOME = EVERYWHERE | {
    (verb, "apps", "daemonsets", "nodeagent") for verb in ("get", "list", "watch")
}


def _kustomized(tmp_path: Path, *components: str) -> list[Object]:
    """The base with components, as a user's own kustomization has it."""
    # A kustomization names others by relative paths only.
    (tmp_path / "deploy").symlink_to(DEPLOY)
    lines = ["resources: [deploy/base]", "components:"]
    lines += [f"  - deploy/components/{name}" for name in components]
    (tmp_path / "kustomization.yaml").write_text("\n".join(lines))
    return build(tmp_path)


def _daemonset(documents: list[Object]) -> Object:
    return next(each for each in documents if each["kind"] == "DaemonSet")


def _container(documents: list[Object]) -> dict[str, Any]:
    [container] = _daemonset(documents)["spec"]["template"]["spec"]["containers"]
    return dict(container)


def _shared(documents: list[Object]) -> list[str]:
    """Those that others may depend on, or have made."""
    return [
        f"{each['kind']} {each['metadata']['name']}"
        for each in documents
        if each["kind"] in ("Namespace", "CustomResourceDefinition", "PriorityClass")
        or not each["metadata"]["name"].startswith(_OWN)
    ]


def _rights(client: Client, namespace: str) -> set[tuple[str, str, str, str]]:
    """What the client may do in `namespace`, as the server's own authorizer says."""
    review = client.post(
        "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", {"spec": {"namespace": namespace}}
    )
    assert not review["status"]["incomplete"]
    return {
        (verb, group, resource, name)
        for rule in review["status"]["resourceRules"]
        for verb in rule["verbs"]
        for group in rule.get("apiGroups", [""])
        for resource in rule.get("resources", [])
        for name in rule.get("resourceNames", [""])
    }


async def _settled_rights(
    plane: ControlPlane, namespace: str, expected: set[tuple[str, str, str, str]]
) -> set[tuple[str, str, str, str]]:
    """The agent's rights beyond everybody's; the authorizer hears of a role a moment late."""
    plane.admin.apply(
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "nobody"}},
        namespace=namespace,
    )
    agent, nobody = plane.client_for(NAMESPACE, ACCOUNT), plane.client_for(namespace, "nobody")
    seen: set[tuple[str, str, str, str]] = set()

    def settled() -> bool:
        seen.clear()
        seen.update(_rights(agent, namespace) - _rights(nobody, namespace))
        return seen == expected

    try:
        await eventually(settled)
    except TimeoutError:
        pass  # The assertion shows what differs.
    finally:
        agent.close()
        nobody.close()
    return seen


async def test_agent_may_do_what_it_does_and_no_more(
    deployed: ControlPlane, namespace: str
) -> None:
    """The role grants exactly the verbs in use, and the own DaemonSet only at home."""
    assert await _settled_rights(deployed, namespace, EVERYWHERE) == EVERYWHERE
    assert await _settled_rights(deployed, NAMESPACE, AT_HOME) == AT_HOME


def test_agent_may_not_change_a_pod(deployed: ControlPlane, namespace: str, node_name: str) -> None:
    """With the right to report on pods goes none to change or delete them, or to read secrets."""
    deployed.admin.make_pod(namespace, "web", node=node_name, addresses=["10.9.0.2"])
    agent = deployed.client_for(NAMESPACE, ACCOUNT)
    path = f"/api/v1/namespaces/{namespace}/pods/web"
    for method, target in (("PATCH", path), ("DELETE", path), ("GET", "/api/v1/secrets")):
        body = {"metadata": {"labels": {"a": "b"}}} if method == "PATCH" else None
        with pytest.raises(AnswerError) as refused:
            agent.request(method, target, body, kind="application/merge-patch+json")
        assert refused.value.status == 403
    agent.close()


async def test_startup_taint_takes_one_more_right(
    control_plane: ControlPlane, namespace: str, tmp_path: Path
) -> None:
    """L19: to take the taint off its node the agent may patch nodes, where that is asked for."""
    documents = _kustomized(tmp_path, "startup-taint")
    apply(control_plane.admin, documents)
    wanted = EVERYWHERE | {("patch", "", "nodes", "")}
    try:
        assert await _settled_rights(control_plane, namespace, wanted) == wanted
    finally:
        binding = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/nodeagent-startup-taint"
        control_plane.admin.delete(binding)
    assert {"name": "REMOVE_STARTUP_TAINT", "value": "true"} in _container(documents)["env"]


def test_kind_cluster_has_agent_and_stub(control_plane: ControlPlane) -> None:
    """All of the cluster to try things in is taken by the server, to the last field."""
    documents = build(DEPLOY / "kind")
    apply(control_plane.admin, documents)
    daemonsets = {each["metadata"]["name"] for each in documents if each["kind"] == "DaemonSet"}
    assert daemonsets == {"nodeagent", "ztunnel-stub"}


@pytest.mark.parametrize("folder", ["base", "leave", "stub"])
def test_pods_of_the_daemonset_are_admitted(
    deployed: ControlPlane, node_name: str, folder: str
) -> None:
    """The pod that the DaemonSet's controller would make passes admission and validation."""
    documents = build(DEPLOY / folder)
    apply(deployed.admin, documents)
    template = _daemonset(documents)["spec"]["template"]
    name = f"{_daemonset(documents)['metadata']['name']}-abcde"
    template["spec"]["nodeName"] = node_name
    pod = {"apiVersion": "v1", "kind": "Pod", "spec": template["spec"]}
    pod["metadata"] = {"name": name, "namespace": NAMESPACE, **template["metadata"]}
    try:
        made = deployed.admin.apply(pod)
    finally:
        deployed.admin.delete(f"/api/v1/namespaces/{NAMESPACE}/pods/{name}", grace=0)
    assert made["spec"]["priority"] == 2_000_001_000


@pytest.mark.parametrize("folder", ["base", "stub"])
def test_container_is_confined(folder: str) -> None:
    """No privileged container, nothing of the host's but what is named, and a pinned image."""
    documents = build(DEPLOY / folder)
    spec = _daemonset(documents)["spec"]["template"]["spec"]
    container = _container(documents)
    security = container["securityContext"]
    assert not any(spec.get(each) for each in ("hostNetwork", "hostPID", "hostIPC"))
    assert (security["privileged"], security["readOnlyRootFilesystem"]) == (False, True)
    assert security["capabilities"]["drop"] == ["ALL"]
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["image"] == f"nodeagent:{__version__}"
    assert spec["tolerations"] == [{"operator": "Exists"}]
    writable = {m["mountPath"] for m in container["volumeMounts"] if not m.get("readOnly")}
    sockets = {"/var/run/ztunnel"}
    if folder == "base":
        sockets |= {"/var/run/istio-cni", "/host/etc/cni/net.d", "/host/opt/cni/bin"}
    assert writable == sockets


@pytest.mark.parametrize("platform", _PLATFORMS)
def test_every_setting_in_the_manifests_exists(tmp_path: Path, platform: str) -> None:
    """A variable that the agent does not know would be ignored without a word."""
    known = {setting.variable for setting in SETTINGS} | _PROGRAMS_SETTINGS
    documents = _kustomized(tmp_path, *_OPTIONS, platform)
    assert {each["name"] for each in _container(documents)["env"]} <= known


@pytest.mark.parametrize("folder", _BASES)
def test_nothing_shared_is_in_a_base(folder: str) -> None:
    """L32: what `kubectl delete -k` deletes is the agent's or the stub's own, by kind and name."""
    assert _shared(build(DEPLOY / folder)) == []


@pytest.mark.parametrize("component", [path.name for path in _COMPONENTS])
def test_nothing_shared_is_in_a_component(tmp_path: Path, component: str) -> None:
    """L32: nor does a component add what others use."""
    assert _shared(_kustomized(tmp_path, component)) == []


def test_namespace_is_made_before_anything_is_applied() -> None:
    """L32: it is in no base, so the documented steps make it where it is missing."""
    root = DEPLOY.parent
    texts = [path.read_text() for path in (*root.glob("docs/*.md"), *root.glob("deploy/**/*.md"))]
    # deploy/leave goes to a cluster in which an agent was, and with it the namespace is.
    first = re.compile(r"kubectl apply -k deploy/(?!leave)")
    blocks = [block for text in texts for block in text.split("```") if first.search(block)]
    assert len(blocks) >= 2
    for block in blocks:
        before = first.split(block)[0]
        assert f"kubectl create namespace {NAMESPACE}\n" in before


@pytest.mark.parametrize("platform", _PLATFORMS)
def test_components_go_together(deployed: ControlPlane, tmp_path: Path, platform: str) -> None:
    """The options can be combined, and the server takes what they make of the DaemonSet."""
    documents = _kustomized(tmp_path, *_OPTIONS, platform)
    apply(deployed.admin, [each for each in documents if each["kind"] == "DaemonSet"])
    container = _container(documents)
    assert "NET_RAW" in container["securityContext"]["capabilities"]["add"]
    # The one that kube-proxy's programs take.
    assert {"name": "xtables-lock", "mountPath": "/run/xtables.lock"} in container["volumeMounts"]
    assert {"name": "XTABLES_LOCKFILE", "value": "/run/xtables.lock"} in container["env"]


@pytest.mark.parametrize("component", [None, *_PLATFORMS])
def test_cni_directories_are_mounted(tmp_path: Path, component: str | None) -> None:
    """The directories that the settings name are the host's, writable, under the prefix."""
    documents = _kustomized(tmp_path, component) if component else build(DEPLOY / "base")
    container = _container(documents)
    values = {each["name"]: each.get("value") for each in container["env"]}
    volumes = _daemonset(documents)["spec"]["template"]["spec"]["volumes"]
    paths = {each["name"]: each["hostPath"]["path"] for each in volumes}
    writable = [each for each in container["volumeMounts"] if not each.get("readOnly")]
    inside = {each["mountPath"]: paths[each["name"]] for each in writable}
    for name in ("CNI_NET_DIR", "CNI_BIN_DIR"):
        wanted = values["HOST_PREFIX"] + values[name]
        [point] = [point for point in inside if wanted == point or wanted.startswith(f"{point}/")]
        assert point == values["HOST_PREFIX"] + inside[point]
    assert len(inside) == 4, "nothing else can be written to"
