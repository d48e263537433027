"""What the cluster is told of a pod's redirection: the annotation, and events."""

import asyncio
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from nodeagent.cluster import projection
from nodeagent.cluster.api import ApiError, ApiServer
from nodeagent.cluster.events import Events
from nodeagent.cluster.log_reporter import LogReporter
from nodeagent.cluster.outbox import Outbox
from nodeagent.cluster.projection import ProjectionError
from nodeagent.mesh.annotation import Redirection
from nodeagent.mesh.pod import REDIRECTION, Pod, PodUID

_AT_ONCE = 8
"""Requests; what is more waits for its turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Patch:
    """What the annotation of one pod is to be."""

    path: str
    uid: PodUID
    redirection: Redirection | None

    def body(self) -> dict[str, Any]:
        # With its UID: another pod of the same name refuses the patch.
        value = self.redirection.value if self.redirection else None
        return {"metadata": {"uid": self.uid, "annotations": {REDIRECTION: value}}}


class ClusterReporter:
    """Keeps the annotation of each pod true, and says what people must know as events.

    See `mesh.dependencies.Reporter`. The same goes to the log. While the API server is away,
    the latest state of each pod is kept.
    """

    def __init__(self, api: ApiServer, node_name: str) -> None:
        self._api = api
        self._log = LogReporter()
        self._events = Events(api, node_name)
        self._patches = Outbox[PodUID, _Patch](
            self._patch,
            what="annotation",
            needs='verb patch on pods/status: ClusterRole "nodeagent" (deploy/base/rbac.yaml)',
            at_once=_AT_ONCE,
        )

    async def run(self) -> None:
        """Deliver until cancelled; then once more, for a second at the most."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._patches.run(), name="annotations")
            tasks.create_task(self._events.run(), name="events")

    @property
    def undelivered(self) -> int:
        """How many pods' annotations are not what they should be yet."""
        return len(self._patches)

    def report(self, pod: Pod, redirection: Redirection | None) -> None:
        """Annotate the pod."""
        self._log.report(pod, redirection)
        patch = _Patch(path=_status_of(pod), uid=pod.uid, redirection=redirection)
        self._patches.put(pod.uid, patch)

    def delivered(self, uid: PodUID) -> bool:
        """Whether the pod's annotation is as it was reported last."""
        return uid not in self._patches

    def contested(self, pod: Pod, times: int) -> None:
        """Say on the pod that somebody works against the agent."""
        self._log.contested(pod, times)
        text = f"something else keeps changing the pod's redirection; it was repaired {times} times"
        self._events.record(pod, "RedirectionContested", text)

    def unprotected(self, pod: Pod) -> None:
        """Say on the pod that its traffic has gone past ztunnel until now (L19)."""
        self._log.unprotected(pod)
        text = "the pod ran before it was redirected: until now its traffic went past ztunnel"
        self._events.record(pod, "EnrolledLate", text)

    def broken(self, pod: Pod, reason: str) -> None:
        """Say on the pod that the annotation promises what is not so (L41)."""
        self._log.broken(pod, reason)
        text = f"annotated {Redirection.ENABLED.value}, but that is not in order: {reason}"
        self._events.record(pod, "RedirectionBroken", text)

    def netns_conflict(self, pod: Pod, netns: str, holder: Pod) -> None:
        """Say on the pod that it was refused another one's namespace (L39)."""
        self._log.netns_conflict(pod, netns, holder)
        # Whose it is stands in the log only: the pod's owner may be a stranger to the other.
        text = f"the network namespace that was found for it, {netns}, is another pod's: refused"
        self._events.record(pod, "NetnsConflict", text)

    def failed(self, pod: Pod, reason: str) -> None:
        """Say on the pod why it cannot be enrolled."""
        self._log.failed(pod, reason)
        self._events.record(pod, "EnrollmentFailed", reason)

    def forget(self, uid: PodUID) -> None:
        """The pod is gone: there is nothing left to annotate."""
        self._patches.drop(uid)

    async def _patch(self, patch: _Patch) -> None:
        try:
            await self._api.patch(patch.path, patch.body())
        except ApiError as error:
            if error.missing:
                return
            if error.status in (409, 422) and await self._replaced(patch):
                return
            raise

    async def _replaced(self, patch: _Patch) -> bool:
        """Whether the name is another pod's by now.

        The server says 422 to a UID that is not the pod's (Kubernetes 1.34), and to much else.
        """
        try:
            pod = await self._api.get(patch.path.removesuffix("/status"))
        except ApiError as error:
            if error.missing:
                return True
            raise
        try:
            return projection.pod_uid(pod) != patch.uid
        except ProjectionError as error:
            raise ApiError(f"the pod is odd: {error}") from error


def _status_of(pod: Pod) -> str:
    namespace, name = quote(pod.namespace, safe=""), quote(pod.name, safe="")
    return f"/api/v1/namespaces/{namespace}/pods/{name}/status"
