"""What the agent says and does where it may not, and how a renewed credential is taken up."""

import base64
import json
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from nodeagent.cluster.api import ApiError
from tests.cluster.control_plane import ControlPlane
from tests.cluster.following import connected, following
from tests.cluster.proxy import FaultProxy
from tests.eventually import eventually

READ = {"apiGroups": [""], "resources": ["pods", "namespaces"]}
TROUBLE = "cannot be followed; trying again"


async def test_missing_permission(
    control_plane: ControlPlane, namespace: str, node_name: str, proxy: FaultProxy, tmp_path: Path
) -> None:
    """A missing permission is named with verb, resource, account and role, once for each state,
    and the agent goes on as soon as it is granted.
    """
    admin = control_plane.admin
    admin.make_account(namespace, "agent")
    admin.make_pod(namespace, "a", node=node_name)
    token = control_plane.token_for(namespace, "agent")
    config = control_plane.kubeconfig(tmp_path / "config", token=token, server=proxy.url)
    with capture_logs() as logs:
        async with following(config, node_name, synced=False) as told:
            await eventually(lambda: proxy.count("pods") > 4)
            admin.make_role(f"lister-{namespace}", {**READ, "verbs": ["list"]})
            admin.bind(f"lister-{namespace}", namespace=namespace, account="agent")
            await told.has("a")
            assert told.synced
            await eventually(lambda: sum(log["event"] == TROUBLE for log in logs) == 4)
            admin.make_role(f"watcher-{namespace}", {**READ, "verbs": ["watch"]})
            admin.bind(f"watcher-{namespace}", namespace=namespace, account="agent")
            admin.make_pod(namespace, "b", node=node_name)
            await told.has("a", "b")
    needs = (
        f"at the cluster scope: ServiceAccount {namespace}/agent needs the ClusterRole "
        '"nodeagent" (deploy/base/rbac.yaml)'
    )
    said = [log["reason"] for log in logs if log["event"] == TROUBLE]
    assert sorted(said) == [
        f"cannot list namespaces {needs}",
        f"cannot list pods {needs}",
        f"cannot watch namespaces {needs}",
        f"cannot watch pods {needs}",
    ]


async def test_token_rotation(control_plane: ControlPlane, namespace: str, tmp_path: Path) -> None:
    """What stands in the token's file is what the next request uses, good or bad."""
    admin = control_plane.admin
    admin.make_role(f"reader-{namespace}", {**READ, "verbs": ["list"]})
    for account in ("first", "second"):
        admin.make_account(namespace, account)
        admin.bind(f"reader-{namespace}", namespace=namespace, account=account)
    file = tmp_path / "token"
    file.write_text(control_plane.token_for(namespace, "first") + "\n")
    config = control_plane.kubeconfig(tmp_path / "config", token_file=str(file))
    async with connected(config) as api:
        await api.get("/api/v1/namespaces")
        assert api.account == f"ServiceAccount {namespace}/first"
        file.write_text(forged(namespace, "first"))
        with pytest.raises(ApiError) as refused:
            await api.get("/api/v1/namespaces")
        assert refused.value.status == 401
        file.write_text(control_plane.token_for(namespace, "second"))
        await api.get("/api/v1/namespaces")
        assert api.account == f"ServiceAccount {namespace}/second"
        file.unlink()
        with pytest.raises(ApiError, match=f"no credential: .*{file}"):
            await api.get("/api/v1/namespaces")


async def test_token_that_is_refused(
    control_plane: ControlPlane, namespace: str, node_name: str, proxy: FaultProxy, tmp_path: Path
) -> None:
    """A source whose token is refused says whose it is, tries on, and works with the next one."""
    admin = control_plane.admin
    admin.make_role(f"reader-{namespace}", {**READ, "verbs": ["list", "watch"]})
    admin.make_account(namespace, "agent")
    admin.bind(f"reader-{namespace}", namespace=namespace, account="agent")
    admin.make_pod(namespace, "a", node=node_name)
    file = tmp_path / "token"
    file.write_text(forged(namespace, "agent"))
    config = control_plane.kubeconfig(tmp_path / "config", token_file=str(file), server=proxy.url)
    with capture_logs() as logs:
        async with following(config, node_name, synced=False) as told:
            await eventually(lambda: proxy.count("pods") > 4)
            file.write_text(control_plane.token_for(namespace, "agent"))
            await told.has("a")
    said = [log["reason"] for log in logs if log["event"] == TROUBLE]
    takes = f"the API server does not take the credential of ServiceAccount {namespace}/agent"
    assert sorted(said) == [
        f"cannot list {resource} at the cluster scope: {takes}: Unauthorized (401)"
        for resource in ("namespaces", "pods")
    ]


def forged(namespace: str, account: str) -> str:
    """A token that says whose it is, and that no server takes."""
    claims = json.dumps({"sub": f"system:serviceaccount:{namespace}:{account}"}).encode()
    return f"e30.{base64.urlsafe_b64encode(claims).decode().rstrip('=')}.e30"
