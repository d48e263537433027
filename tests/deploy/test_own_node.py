"""What somebody who has taken an agent's token can change: nothing beyond its node.

The token is one as kubelet gives it to the agent's pod, and the API server is real.
"""

from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest

from nodeagent.cluster.api import ApiServer
from nodeagent.cluster.taint import remove_taint
from nodeagent.mesh.pod import REDIRECTION
from tests.cluster.client import AnswerError, Client, Object
from tests.cluster.control_plane import ControlPlane
from tests.cluster.manifests import ACCOUNT, DEPLOY, NAMESPACE, apply, build
from tests.eventually import eventually

KEY = "cni.istio.io/not-ready"
OTHER = {"key": "gpu", "effect": "NoSchedule"}
TAINT = {"key": KEY, "effect": "NoSchedule"}
BINDING = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/nodeagent-startup-taint"


class Taken:
    """An agent's token, and two nodes with a pod on each."""

    def __init__(self, plane: ControlPlane, namespace: str, node_name: str) -> None:
        self.plane, self.admin = plane, plane.admin
        self.own_node, self.other_node = node_name, f"{node_name}-other"
        self.pods = f"/api/v1/namespaces/{namespace}/pods"
        for name, node in (("own", self.own_node), ("other", self.other_node)):
            self.admin.make_pod(namespace, name, node=node, addresses=["10.9.0.2"])
            taints = {"metadata": {"name": node}, "spec": {"taints": [TAINT, OTHER]}}
            self.admin.post("/api/v1/nodes", taints)
        self.agent_pod = f"nodeagent-{node_name}"
        own = {"serviceAccountName": ACCOUNT}
        self.admin.make_pod(NAMESPACE, self.agent_pod, node=self.own_node, spec=own)
        self.token = plane.token_for(NAMESPACE, ACCOUNT, pod=self.agent_pod)
        self.agent = Client(plane.url, plane.ca, self.token)

    def annotate(self, pod: str, value: str | None, client: Client | None = None) -> Object:
        body = {"metadata": {"annotations": {REDIRECTION: value}}}
        return (client or self.agent).patch(f"{self.pods}/{pod}/status", body)

    def refused(self, path: str, body: object) -> str:
        """Why the agent may not do it."""
        with pytest.raises(AnswerError) as refused:
            self.agent.patch(path, body)
        assert refused.value.status == 403
        return str(refused.value)

    def is_refused(self, path: str, body: object) -> bool:
        try:
            self.agent.patch(path, body)
        except AnswerError as error:
            return error.status == 403 and "the agent may only" in str(error)
        return False


@pytest.fixture
async def taken(deployed: ControlPlane, namespace: str, node_name: str) -> AsyncIterator[Taken]:
    """Once the server has heard of the policy: a moment after it was made."""
    made = Taken(deployed, namespace, node_name)
    body = {"metadata": {"annotations": {REDIRECTION: "pending"}}}
    await eventually(lambda: made.is_refused(f"{made.pods}/other/status", body))
    yield made
    made.agent.close()


@pytest.fixture
async def with_taint(taken: Taken, tmp_path: Path) -> AsyncIterator[Taken]:
    """With the component that gives the agent a right to change nodes."""
    (tmp_path / "deploy").symlink_to(DEPLOY)
    (tmp_path / "kustomization.yaml").write_text(
        "resources: [deploy/base]\ncomponents: [deploy/components/startup-taint]\n"
    )
    apply(taken.admin, build(tmp_path))
    node = f"/api/v1/nodes/{taken.other_node}"
    body = {"metadata": {"labels": {"a": "b"}}}
    await eventually(lambda: taken.is_refused(node, body))
    yield taken
    taken.admin.delete(BINDING)


def test_own_pod_is_annotated(taken: Taken) -> None:
    """The agent's own work is let through: the annotation is set, changed and taken off."""
    for value in ("pending", "enabled"):
        annotations = taken.annotate("own", value)["metadata"]["annotations"]
        assert annotations[REDIRECTION] == value
    assert REDIRECTION not in taken.annotate("own", None)["metadata"].get("annotations", {})


def test_pod_of_another_node(taken: Taken) -> None:
    """A pod of another node is out of reach, the annotation too."""
    body = {"metadata": {"annotations": {REDIRECTION: "enabled"}}}
    assert taken.own_node in taken.refused(f"{taken.pods}/other/status", body)


@pytest.mark.parametrize(
    "body",
    [
        {"status": {"podIPs": [{"ip": "10.9.0.66"}], "podIP": "10.9.0.66"}},
        {"status": {"phase": "Failed"}},
        {"status": {"conditions": [{"type": "Ready", "status": "False"}]}},
        {"metadata": {"labels": {"app": "ztunnel"}}},
        {"metadata": {"annotations": {"sidecar.istio.io/status": "{}"}}},
        {"metadata": {"annotations": {"kept": None}}},
        {"metadata": {"annotations": {"kept": "changed"}}},
        {"metadata": {"finalizers": ["example.test/for-ever"]}},
    ],
)
def test_other_fields_of_an_own_pod(taken: Taken, body: Mapping[str, object]) -> None:
    """Of a pod of its own node nothing but the annotation can be changed."""
    taken.admin.patch(f"{taken.pods}/own", {"metadata": {"annotations": {"kept": "as it is"}}})
    assert REDIRECTION in taken.refused(f"{taken.pods}/own/status", body)


def test_token_that_names_no_node(taken: Taken) -> None:
    """A token of the account that is no pod's can change nothing."""
    agent = taken.plane.client_for(NAMESPACE, ACCOUNT)
    with pytest.raises(AnswerError, match="not named in its token"):
        taken.annotate("own", "enabled", agent)
    agent.close()


def test_nobody_else_is_bound(taken: Taken) -> None:
    """Others go on changing the status of whatever pod they may."""
    taken.annotate("other", "enabled", taken.admin)
    taken.admin.patch(f"{taken.pods}/other/status", {"status": {"phase": "Failed"}})


async def test_taint_of_the_own_node(with_taint: Taken, tmp_path: Path) -> None:
    """L19: the agent takes its taint off its own node, with the policy in place."""
    config = with_taint.plane.kubeconfig(tmp_path / "config", token=with_taint.token)
    async with ApiServer.connect(config) as api:
        assert await remove_taint(api, with_taint.own_node, KEY)
    node = with_taint.admin.get(f"/api/v1/nodes/{with_taint.own_node}")
    assert KEY not in [taint["key"] for taint in node["spec"]["taints"]]
    assert OTHER in node["spec"]["taints"]


def test_other_nodes(with_taint: Taken) -> None:
    """The taint of another node stays, and all else of it."""
    node = f"/api/v1/nodes/{with_taint.other_node}"
    for body in ({"spec": {"taints": [OTHER]}}, {"spec": {"unschedulable": True}}):
        assert with_taint.own_node in with_taint.refused(node, body)


@pytest.mark.parametrize(
    "body",
    [
        {"spec": {"taints": [TAINT]}},
        {"spec": {"taints": [TAINT, OTHER, {"key": "new", "effect": "NoExecute"}]}},
        {"spec": {"taints": [TAINT, {**OTHER, "effect": "NoExecute"}]}},
        {"spec": {"unschedulable": True}},
        {"spec": {"podCIDR": "10.1.0.0/24", "podCIDRs": ["10.1.0.0/24"]}},
        {"spec": {"providerID": "stolen"}},
        {"metadata": {"labels": {"node-role.kubernetes.io/control-plane": ""}}},
        {"metadata": {"annotations": {"a": "b"}}},
    ],
)
def test_other_fields_of_the_own_node(with_taint: Taken, body: Mapping[str, object]) -> None:
    """Of its own node the agent can take off its taint, and change nothing else."""
    assert KEY in with_taint.refused(f"/api/v1/nodes/{with_taint.own_node}", body)


def test_older_servers(tmp_path: Path) -> None:
    """For a server that does not have it the policy is left out, of every component."""
    (tmp_path / "deploy").symlink_to(DEPLOY)
    names = ("startup-taint", "no-admission-policy")
    components = [f"deploy/components/{name}" for name in names]
    kustomization = f"resources: [deploy/base]\ncomponents: [{', '.join(components)}]\n"
    (tmp_path / "kustomization.yaml").write_text(kustomization)
    kinds = {document["kind"] for document in build(tmp_path)}
    assert "ClusterRole" in kinds
    assert not any("Admission" in kind for kind in kinds)
