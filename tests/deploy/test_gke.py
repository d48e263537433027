"""What GKE asks of pods of the highest priority, with an API server that asks it too."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import binaries
from tests.cluster.client import AnswerError, Object
from tests.cluster.control_plane import ControlPlane
from tests.cluster.manifests import DEPLOY, NAMESPACE, apply, build

_LIMITED = {
    "resource": "pods",
    "matchScopes": [
        {"scopeName": "PriorityClass", "operator": "In", "values": ["system-node-critical"]}
    ],
}
_ADMISSION = {
    "apiVersion": "apiserver.config.k8s.io/v1",
    "kind": "AdmissionConfiguration",
    "plugins": [
        {
            "name": "ResourceQuota",
            "configuration": {
                "apiVersion": "apiserver.config.k8s.io/v1",
                "kind": "ResourceQuotaConfiguration",
                "limitedResources": [_LIMITED],
            },
        }
    ],
}
"""GKE's; see kube-apiserver's ResourceQuota admission controller."""


@pytest.fixture
def gke(tmp_path: Path) -> Iterator[ControlPlane]:
    config = tmp_path / "admission.json"
    config.write_text(json.dumps(_ADMISSION))
    argument = f"--admission-control-config-file={config}"
    with ControlPlane(binaries.find(), argument) as control_plane:
        yield control_plane


def _pod(daemonset: Object) -> Object:
    template = daemonset["spec"]["template"]
    pod = {"apiVersion": "v1", "kind": "Pod", "spec": template["spec"]}
    return {**pod, "metadata": {**template["metadata"], "name": "nodeagent-abcde"}}


def test_quota_admits_the_agent(gke: ControlPlane, tmp_path: Path) -> None:
    """Without the component GKE refuses the agent's pod; with its quota it is admitted."""
    documents = build(DEPLOY / "base")
    daemonset = next(each for each in documents if each["kind"] == "DaemonSet")
    apply(gke.admin, documents)
    with pytest.raises(AnswerError, match="insufficient quota to match these scopes"):
        gke.admin.apply(_pod(daemonset), namespace=NAMESPACE)

    (tmp_path / "deploy").symlink_to(DEPLOY)
    lines = ["resources: [deploy/base]", "components: [deploy/components/gke]"]
    (tmp_path / "kustomization.yaml").write_text("\n".join(lines))
    documents = build(tmp_path)
    apply(gke.admin, documents)
    quota = next(each for each in documents if each["kind"] == "ResourceQuota")
    # A controller's work: to count what there is.
    hard = quota["spec"]["hard"]
    path = f"/api/v1/namespaces/{NAMESPACE}/resourcequotas/{quota['metadata']['name']}/status"
    status = {"status": {"hard": hard, "used": {"pods": "0"}}}
    gke.admin.request("PATCH", path, status, kind="application/merge-patch+json")
    made = gke.admin.apply(_pod(daemonset), namespace=NAMESPACE)
    assert made["spec"]["priorityClassName"] == "system-node-critical"
