"""`nodeagent check` against a real API server: which permissions are there."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from nodeagent import config
from nodeagent.commands.check.check import Check
from nodeagent.commands.check.cluster import check_cluster, permissions
from nodeagent.config import Settings
from tests.cluster.control_plane import ControlPlane
from tests.cluster.manifests import ACCOUNT, NAMESPACE
from tests.cluster.proxy import FaultProxy
from tests.deploy.test_manifests import AT_HOME


def settings(kubeconfig: str, **flags: str) -> Settings:
    own = {"pod_name": "nodeagent-abcde", "pod_namespace": NAMESPACE, "node_name": "here"}
    return config.load({"kubeconfig": kubeconfig, **own, **flags}, {})


def names(checks: Sequence[Check], *, ok: bool) -> set[str]:
    return {check.name for check in checks if check.ok is ok}


def test_checked_is_what_the_role_grants(tmp_path: Path) -> None:
    """The list of permissions and the manifests are one and the same."""
    wanted = permissions(settings(str(tmp_path)))
    # The role names no node: there is one agent on each.
    named = {(p.verb, p.group, p.what, "" if p.resource == "nodes" else p.name) for p in wanted}
    assert named == AT_HOME
    more = permissions(settings(str(tmp_path), remove_startup_taint="true"))
    assert {(p.verb, p.what) for p in set(more) - set(wanted)} == {("patch", "nodes")}


async def test_account_of_the_manifests_passes(deployed: ControlPlane, tmp_path: Path) -> None:
    """With what `deploy/base` grants every line is good."""
    token = deployed.token_for(NAMESPACE, ACCOUNT)
    kubeconfig = deployed.kubeconfig(tmp_path / "config", token=token)
    checks = await check_cluster(settings(kubeconfig))
    assert [check for check in checks if not check.ok] == []
    assert "ServiceAccount istio-system/nodeagent" in checks[0].detail
    assert len(checks) == 7


async def test_each_missing_permission_is_named(
    deployed: ControlPlane, namespace: str, tmp_path: Path
) -> None:
    """Verb, resource and the role that grants it are named for an account that has none."""
    kubeconfig = deployed.kubeconfig(
        tmp_path / "config", token=deployed.token_for(namespace, "default")
    )
    checks = await check_cluster(settings(kubeconfig, remove_startup_taint="true"))
    pods = next(check for check in checks if check.name == "may use pods")
    taint = [check for check in checks if "startup-taint" in check.remedy]
    assert names(checks, ok=True) == {"Kubernetes API"}
    assert len(checks) == 8
    assert pods.detail == f"ServiceAccount {namespace}/default may not list, watch, get"
    assert pods.remedy == 'bind it to the ClusterRole "nodeagent" (deploy/base/rbac.yaml)'
    assert [check.name for check in taint] == ["may use nodes"]


@pytest.mark.parametrize("fault", ["away", "broken"])
async def test_server_that_does_not_answer_is_one_line(
    control_plane: ControlPlane, proxy: FaultProxy, tmp_path: Path, fault: str
) -> None:
    """Nothing is said of permissions where nobody can be asked."""
    kubeconfig = control_plane.kubeconfig(tmp_path / "config", server=proxy.url)
    if fault == "away":
        await proxy.down()
    else:
        proxy.answer(500, "etcdserver: no leader", match="/version")
    [check] = await check_cluster(settings(kubeconfig))
    assert not check.ok
    assert fault == "away" or "no leader" in check.detail
