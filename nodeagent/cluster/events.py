"""Kubernetes events on pods, which ``kubectl describe pod`` shows."""

import time
import uuid
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import structlog

from nodeagent.cluster.api import ApiError, ApiServer
from nodeagent.cluster.outbox import Outbox
from nodeagent.mesh.pod import Pod, PodUID
from nodeagent.observer import Reason

log = structlog.get_logger()

MAX_TEXT = 1024
"""Bytes of an event's text; the API refuses more (events.k8s.io/v1)."""
WINDOW = 600.0
"""Seconds."""
MOST_IN_WINDOW = 4
"""Events for each pod and reason in `WINDOW`; two of them never have the same text."""
_MOST_WAITING = 512
_NEEDS = 'verb create on events: ClusterRole "nodeagent" (deploy/base/rbac.yaml)'
_ENDING = "NamespaceTerminating"
"""The API server's cause for a 403 that is about the namespace, not about rights."""
_AT_ONCE = 2

_Key = tuple[PodUID, Reason]


class Events:
    """Creates events; drops what the API server refuses, and what is more than the limits."""

    def __init__(self, api: ApiServer, node_name: str) -> None:
        self._api = api
        self._node_name = node_name
        self._told: dict[_Key, list[tuple[float, str]]] = {}
        self._denied = False
        """Whether it was said that there is no right to make events."""
        self._outbox = Outbox[str, dict[str, Any]](
            self._create,
            what="event",
            needs=_NEEDS,
            at_once=_AT_ONCE,
        )

    async def run(self) -> None:
        """Deliver until cancelled; then once more, for a second at the most."""
        await self._outbox.run()

    @property
    def undelivered(self) -> int:
        """How many events are on their way."""
        return len(self._outbox)

    def record(self, pod: Pod, reason: Reason, text: str) -> None:
        """Put a warning on the pod; `text` may come from a tenant, and is cut to `MAX_TEXT`."""
        text = text.encode(errors="replace")[:MAX_TEXT].decode(errors="ignore")
        now = time.monotonic()
        self._told = {key: kept for key, told in self._told.items() if (kept := _recent(told, now))}
        told = self._told.setdefault((pod.uid, reason), [])
        if len(told) >= MOST_IN_WINDOW or any(text == earlier for _, earlier in told):
            return
        if len(self._outbox) >= _MOST_WAITING:
            log.warning("event dropped", pod=str(pod), reason=reason)
            return
        told.append((now, text))
        event = self._event(pod, reason, text)
        self._outbox.put(event["metadata"]["name"], event)

    def _event(self, pod: Pod, reason: Reason, text: str) -> dict[str, Any]:
        # The agent chooses the name, so that a request that was carried out but not answered
        # makes no second event when it is repeated.
        name = f"{pod.name[:200].rstrip('-.')}.{uuid.uuid4().hex[:16]}"
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": pod.namespace},
            "involvedObject": {
                "apiVersion": "v1",
                "kind": "Pod",
                "namespace": pod.namespace,
                "name": pod.name,
                "uid": pod.uid,
            },
            "type": "Warning",
            "reason": reason.value,
            "message": text,
            "source": {"component": "nodeagent", "host": self._node_name},
            "reportingComponent": "nodeagent",
            "reportingInstance": self._node_name,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }

    async def _create(self, event: dict[str, Any]) -> None:
        metadata = event["metadata"]
        try:
            await self._api.post(
                f"/api/v1/namespaces/{quote(metadata['namespace'], safe='')}/events", event
            )
        except ApiError as error:
            if error.conflict:
                return
            if error.status in (None, 401, 429) or error.status >= 500:
                raise
            if error.denied and _ENDING not in error.causes:
                # No right to make any: the chart of istio-cni may give none.
                if not self._denied:
                    log.warning("no events are made on pods", error=str(error), needs=_NEEDS)
                self._denied = True
                return
            log.warning("event refused", name=metadata["name"], error=str(error))


def _recent(told: Iterable[tuple[float, str]], now: float) -> list[tuple[float, str]]:
    return [(at, text) for at, text in told if now - at < WINDOW]
