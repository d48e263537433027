"""Reports on pods to the cluster: the redirection's annotation, and events.

Everything goes to the log too. Requests are made in the background; while the API server is
away, the latest annotation of each pod is kept for it.
"""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
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
from nodeagent.observer import NOBODY, Observer, Reason

_AT_ONCE = 8
"""Requests at one time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Patch:
    """A request to set the annotation of one pod; None takes it off."""

    path: str
    uid: PodUID
    redirection: Redirection | None
    decided: float = field(default_factory=time.monotonic, compare=False)

    def body(self) -> dict[str, Any]:
        # With the UID the server refuses the patch for another pod of the same name.
        value = self.redirection.value if self.redirection else None
        return {"metadata": {"uid": self.uid, "annotations": {REDIRECTION: value}}}


class ClusterReporter:
    """Keeps the annotation of each pod true, and says what people must know as events.

    See `mesh.dependencies.Reporter`. The same goes to the log. While the API server is away,
    the latest state of each pod is kept.
    """

    def __init__(self, api: ApiServer, node_name: str, observer: Observer = NOBODY) -> None:
        self._api = api
        self._log = LogReporter(observer)
        self._observer = observer
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
        """How many annotations the server has not taken yet."""
        return len(self._patches)

    def waiting(self) -> Mapping[str, int]:
        """How much the server has not taken yet, by what it is."""
        return {"annotations": self.undelivered, "events": self._events.undelivered}

    def report(self, pod: Pod, redirection: Redirection | None) -> None:
        """Annotate the pod."""
        self._log.report(pod, redirection)
        patch = _Patch(path=_status_of(pod), uid=pod.uid, redirection=redirection)
        self._patches.put(pod.uid, patch)

    def delivered(self, uid: PodUID) -> bool:
        """Whether the server has taken the annotation that was reported last."""
        return uid not in self._patches

    def contested(self, pod: Pod, times: int) -> None:
        """Event: something else keeps changing the pod's redirection."""
        self._log.contested(pod, times)
        text = f"something else keeps changing the pod's redirection; it was repaired {times} times"
        self._events.record(pod, Reason.CONTESTED, text)

    def unprotected(self, pod: Pod) -> None:
        """Event: the pod's traffic has gone past ztunnel until now (L19)."""
        self._log.unprotected(pod)
        text = "the pod ran before it was redirected: until now its traffic went past ztunnel"
        self._events.record(pod, Reason.ENROLLED_LATE, text)

    def broken(self, pod: Pod, reason: str) -> None:
        """Event: the pod is annotated `enabled`, and not served (L41)."""
        self._log.broken(pod, reason)
        text = f"annotated {Redirection.ENABLED.value}, but that is not in order: {reason}"
        self._events.record(pod, Reason.BROKEN, text)

    def netns_conflict(self, pod: Pod, netns: str, holder: Pod) -> None:
        """Event: the pod was refused a netns, because it is another pod's (L39)."""
        self._log.netns_conflict(pod, netns, holder)
        # The other pod's name is in the log only, because it may be another tenant's.
        text = f"the network namespace that was found for it, {netns}, is another pod's: refused"
        self._events.record(pod, Reason.NETNS_CONFLICT, text)

    def failed(self, pod: Pod, reason: str) -> None:
        """Event: why the pod cannot be enrolled."""
        self._log.failed(pod, reason)
        self._events.record(pod, Reason.FAILED, reason)

    def forget(self, uid: PodUID) -> None:
        """Do not annotate the pod any more: it is gone."""
        self._patches.drop(uid)

    async def _patch(self, patch: _Patch) -> None:
        try:
            await self._api.patch(patch.path, patch.body())
            self._observer.annotated(time.monotonic() - patch.decided)
        except ApiError as error:
            if error.missing:
                return
            if error.status in (409, 422) and await self._replaced(patch):
                return
            raise

    async def _replaced(self, patch: _Patch) -> bool:
        """Whether another pod has the name by now.

        The server answers 422 for a UID that is not the pod's (Kubernetes 1.34), but for other
        faults too.
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
