"""Whether an agent that is told to stop leaves its node for good, or for its successor (L17)."""

import asyncio
import contextlib
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import structlog

from nodeagent.cluster import projection
from nodeagent.cluster.api import ApiError, ApiServer
from nodeagent.cluster.known import Gone, Seen
from nodeagent.cluster.listwatch import ListWatch, Resource
from nodeagent.cluster.projection import ProjectionError
from nodeagent.mesh.backoff import Backoff

log = structlog.get_logger()

_TIMEOUT = 2.0
"""Seconds; an agent has five to stop."""
_SOON, _LONGEST = 0.1, 60.0
_GRACE = 30.0
"""Kubernetes' own default."""
_INTEGER = re.compile(r"[+-]?[0-9]{1,19}")
_NAME_FIELD = "metadata.name"

Object = Mapping[str, Any]


class UnclearError(Exception):
    """It cannot be told: then the agent stays."""


class UninstallDetector:
    """Asks what has become of the DaemonSet that the agent's own pod belongs to."""

    def __init__(
        self, api: ApiServer, *, pod_namespace: str, pod_name: str, node_name: str
    ) -> None:
        self._api = api
        self._pod_name = pod_name
        self._pods = f"/api/v1/namespaces/{quote(pod_namespace, safe='')}/pods"
        self._daemonsets = f"/apis/apps/v1/namespaces/{quote(pod_namespace, safe='')}/daemonsets"
        self._node = f"/api/v1/nodes/{quote(node_name, safe='')}"
        self._daemonset: str | None = None
        self.grace = _GRACE
        """Seconds that kubelet gives the agent to stop."""
        self._ending = ""
        """What the watch told last of the DaemonSet's end, in words."""

    async def follow(self) -> None:
        """Learn which DaemonSet it is, and hear of its end, without end.

        Whoever removes everything at once takes our permissions too, before we are
        told to stop and could ask. A watch that stands is not cut off by that.
        """
        await self.learn()
        if self._daemonset is None:
            return
        watch = ListWatch(
            self._api,
            Resource(
                name="daemonsets",
                path=self._daemonsets,
                selector={"fieldSelector": f"metadata.name={self._daemonset}"},
                key=projection.name,
                project=projection.deleting,
                at_home=True,
            ),
        )
        async with contextlib.aclosing(watch.changes()) as changes:
            async for change in changes:
                match change:
                    case Seen(ending):
                        self._ending = "is being deleted" if ending else ""
                    case Gone():
                        self._ending = "is gone"

    async def learn(self) -> None:
        """Find out the DaemonSet's name while the API can be asked; returns once it is known."""
        backoff = Backoff(longest=_LONGEST)
        trouble: object = ()
        while True:
            try:
                self._daemonset = await self._owner()
            except ApiError as error:
                if error.status != trouble:
                    trouble = error.status
                    log.warning("own pod cannot be read", pod=self._pod_name, error=str(error))
                await asyncio.sleep(max(backoff.delay(), error.retry_after or 0, _SOON))
            except UnclearError as error:
                log.warning("an uninstall will not be noticed", reason=str(error))
                return
            else:
                return

    async def is_uninstall(self, *, timeout: float = _TIMEOUT) -> bool:  # noqa: ASYNC109 - part of what is asked
        """Whether no agent will come after this one; False where that cannot be told.

        It is so where the DaemonSet does not exist, is being deleted, or does not select
        the node. One that was made anew under the name has its agents come here.
        """
        try:
            async with asyncio.timeout(timeout):
                reason = await self._reason()
        except TimeoutError:
            reason = self._remembered(f"no answer from the API in {timeout:g} s")
        except (ApiError, UnclearError) as error:
            reason = self._remembered(str(error))
        except (ProjectionError, AttributeError, LookupError, TypeError) as error:
            reason = self._remembered(f"the API's answer is odd: {error!r}")
        else:
            if reason is None:
                log.info("an upgrade or a restart: the DaemonSet stands", name=self._daemonset)
        if reason is None:
            return False
        log.info("an uninstall", reason=reason)
        return True

    def _remembered(self, trouble: str) -> str | None:
        """What was told of the DaemonSet's end before there was `trouble` to ask."""
        if self._ending:
            return f"DaemonSet {self._daemonset} {self._ending}"
        log.warning("taken for an upgrade", reason=trouble)
        return None

    async def _reason(self) -> str | None:
        unread = None
        try:
            # Not only once: another DaemonSet may have adopted the pod.
            self._daemonset = await self._owner()
        except ApiError as error:
            if self._daemonset is None:
                raise
            unread = error
        assert self._daemonset is not None  # noqa: S101 - tells mypy what the lines above made so
        try:
            daemonset = await self._api.get(f"{self._daemonsets}/{quote(self._daemonset, safe='')}")
        except ApiError as error:
            if not error.missing:
                raise
            # Whatever answers like this to everything is not the API server.
            if unread is not None:
                raise UnclearError(f"no DaemonSet, and own pod cannot be read: {unread}") from error
            return f"DaemonSet {self._daemonset} is gone"
        if projection.deleting(daemonset):
            return f"DaemonSet {self._daemonset} is being deleted"
        if not selects(daemonset, await self._api.get(self._node)):
            return f"DaemonSet {self._daemonset} does not select this node"
        return None

    async def _owner(self) -> str:
        """Raises ``ApiError``, ``UnclearError``."""
        pod = await self._api.get(f"{self._pods}/{quote(self._pod_name, safe='')}")
        match pod:
            case {"spec": {"terminationGracePeriodSeconds": int(seconds)}}:
                self.grace = float(seconds)
        try:
            owner = projection.controller(pod, "DaemonSet")
        except ProjectionError as error:
            raise ApiError(f"pod {self._pod_name} is odd: {error}") from error
        if owner is None:
            raise UnclearError(f"pod {self._pod_name} belongs to no DaemonSet")
        return owner


def selects(daemonset: Object, node: Object) -> bool:
    """Whether the DaemonSet wants a pod on the node, going by names and labels.

    Taints are left out: a node that is drained or not ready keeps its agent's work.
    Raises ``UnclearError`` for a condition that is not known here.
    """
    spec: Object = daemonset["spec"]["template"]["spec"]
    name: str = node["metadata"]["name"]
    labels: Mapping[str, str] = node["metadata"].get("labels") or {}
    if spec.get("nodeName", name) != name:
        return False
    chosen: Mapping[str, str] = spec.get("nodeSelector") or {}
    if any(labels.get(key) != value for key, value in chosen.items()):
        return False
    affinity: Object = (spec.get("affinity") or {}).get("nodeAffinity") or {}
    required: Object | None = affinity.get("requiredDuringSchedulingIgnoredDuringExecution")
    if required is None:
        return True
    return any(_meets(term, name, labels) for term in required["nodeSelectorTerms"])


def _meets(term: Object, name: str, labels: Mapping[str, str]) -> bool:
    expressions = term.get("matchExpressions") or []
    fields = term.get("matchFields") or []
    for field in fields:
        if field.get("key") != _NAME_FIELD:
            raise UnclearError(f"matchFields has the unknown field {field.get('key')!r}")
    # A term without conditions matches nothing (Kubernetes' API reference, NodeSelectorTerm).
    return bool(expressions or fields) and all(
        [
            *(_holds(each, labels) for each in expressions),
            *(_holds(each, {_NAME_FIELD: name}) for each in fields),
        ]
    )


def _holds(condition: Object, labels: Mapping[str, str]) -> bool:
    value = labels.get(condition["key"])
    values = condition.get("values") or []
    match condition["operator"]:
        case "In":
            return value in values
        case "NotIn":  # holds without the label, too
            return value not in values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case "Gt":
            return _compared(value, values) > 0
        case "Lt":
            return _compared(value, values) < 0
        case unknown:
            raise UnclearError(f"node affinity has the unknown operator {unknown!r}")


def _compared(value: str | None, values: list[str]) -> int:
    """Below, above or at zero as the label is to the limit; zero without a number to compare."""
    if len(values) != 1 or not _INTEGER.fullmatch(values[0]):
        raise UnclearError(f"node affinity compares with {values!r}, which is no integer")
    if value is None or not _INTEGER.fullmatch(value):
        return 0
    return (int(value) > int(values[0])) - (int(value) < int(values[0]))
