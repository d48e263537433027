"""Checks of the Kubernetes API: whether it answers, and grants what the agent needs."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

from nodeagent.cluster.api import ApiError, ApiServer, NoClusterError
from nodeagent.commands.check.check import Check, bad, good
from nodeagent.config import Settings

_REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
_TIMEOUT = 5.0
_BASE = 'ClusterRole "nodeagent" (deploy/base/rbac.yaml)'
_HOME = 'Role "nodeagent" of its namespace (deploy/base/rbac.yaml)'
_TAINT = 'ClusterRole "nodeagent-startup-taint" (deploy/components/startup-taint)'


@dataclass(frozen=True, slots=True, kw_only=True)
class Permission:
    """A verb that the agent uses, and the role that grants it."""

    verb: str
    resource: str
    subresource: str = ""
    group: str = ""
    name: str = ""
    namespace: str = ""
    """Empty: everywhere."""
    role: str = _BASE

    @property
    def what(self) -> str:
        """The resource, as roles name it."""
        return "/".join(filter(None, (self.resource, self.subresource)))


def permissions(settings: Settings) -> tuple[Permission, ...]:
    """What the agent asks of the API with these settings; `deploy/` grants no other permission."""
    reading = [
        Permission(verb=verb, resource=resource)
        for resource in ("pods", "namespaces")
        for verb in ("list", "watch", "get")
    ]
    daemonset = [
        Permission(
            verb=verb,
            resource="daemonsets",
            group="apps",
            name="nodeagent",
            namespace=settings.pod_namespace,
            role=_HOME,
        )
        for verb in ("get", "list", "watch")
    ]
    taint = Permission(verb="patch", resource="nodes", name=settings.node_name, role=_TAINT)
    return (
        *reading,
        Permission(verb="patch", resource="pods", subresource="status"),
        Permission(verb="create", resource="events"),
        Permission(verb="get", resource="nodes", name=settings.node_name),
        *([taint] if settings.remove_startup_taint else []),
        *(daemonset if settings.pod_name else []),
    )


async def check_cluster(settings: Settings) -> list[Check]:
    """The API server answers, and grants each permission; a line for each resource."""
    name = "Kubernetes API"
    try:
        async with ApiServer.connect(settings.kubeconfig) as api:
            try:
                version = await api.get("/version", timeout=_TIMEOUT)
            except ApiError as error:
                remedy = "see that the server is up, and that this node's network reaches it"
                return [bad(name, str(error), remedy)]
            answered = good(
                name, f"version {version.get('gitVersion', 'unknown')}, as {api.account}"
            )
            return [answered, *await _check_permissions(api, permissions(settings))]
    except NoClusterError as error:
        return [bad(name, str(error), "KUBECONFIG, or POD_MANIFESTS for pods without a cluster")]


async def _check_permissions(api: ApiServer, wanted: Iterable[Permission]) -> list[Check]:
    def group(permission: Permission) -> tuple[str, str]:
        return permission.what, permission.role

    return [
        await _check_resource(api, what, role, list(several))
        for (what, role), several in groupby(wanted, key=group)
    ]


async def _check_resource(api: ApiServer, what: str, role: str, wanted: list[Permission]) -> Check:
    name = f"may use {what}"
    try:
        answers = await asyncio.gather(*(_allowed(api, permission) for permission in wanted))
    except ApiError as error:
        return bad(name, f"cannot be asked: {error}", "try again when the API server answers")
    refused = [each.verb for each, allowed in zip(wanted, answers, strict=True) if not allowed]
    if refused:
        return bad(name, f"{api.account} may not {', '.join(refused)}", f"bind it to the {role}")
    return good(name, ", ".join(each.verb for each in wanted))


async def _allowed(api: ApiServer, permission: Permission) -> bool:
    attributes = {
        "verb": permission.verb,
        "group": permission.group,
        "resource": permission.resource,
        "subresource": permission.subresource,
        "name": permission.name,
        "namespace": permission.namespace,
    }
    review = await api.post(
        _REVIEWS,
        {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": attributes},
        },
    )
    return review.get("status", {}).get("allowed") is True
