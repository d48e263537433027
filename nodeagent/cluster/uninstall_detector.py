"""Whether an agent that is told to stop is uninstalled, or replaced by another agent.

An agent whose pod is deleted gets the same SIGTERM for an uninstall as for an upgrade. What
tells them apart is the DaemonSet that the agent's pod belongs to: it is gone, is being
deleted, or does not select this node any more. The detector learns at the start which
DaemonSet that is, watches it, and asks for it again at the stop. Whatever is not certain
counts as an upgrade, because an uninstall takes pods' protection away.
"""

import asyncio
import contextlib
from urllib.parse import quote

import structlog

from nodeagent.cluster import projection
from nodeagent.cluster.api import ApiError, ApiServer
from nodeagent.cluster.known import Gone, Seen
from nodeagent.cluster.listwatch import ListWatch, Resource
from nodeagent.cluster.node_selection import UnknownConditionError, selects
from nodeagent.cluster.projection import ProjectionError
from nodeagent.cluster.retried import retried

log = structlog.get_logger()

_TIMEOUT = 2.0
"""Seconds for the question at the stop."""
_LONGEST_PAUSE = 60.0
"""Seconds between two attempts to read the agent's own pod."""
_RIGHTS_AGAIN = 600.0
"""Seconds until it is tried again whether there is the right to follow the DaemonSet."""
_FORBIDDEN = 403
_DEFAULT_GRACE = 30.0
"""Kubernetes' own ``terminationGracePeriodSeconds``."""


class _UnclearError(Exception):
    """The API's answers do not tell an uninstall from an upgrade."""


class UninstallDetector:
    """Follows the DaemonSet that the agent's own pod belongs to."""

    def __init__(
        self, api: ApiServer, *, pod_namespace: str, pod_name: str, node_name: str
    ) -> None:
        self._api = api
        self._pod_name = pod_name
        self._pods = f"/api/v1/namespaces/{quote(pod_namespace, safe='')}/pods"
        self._daemonsets = f"/apis/apps/v1/namespaces/{quote(pod_namespace, safe='')}/daemonsets"
        self._node = f"/api/v1/nodes/{quote(node_name, safe='')}"
        self._daemonset: str | None = None
        self.grace = _DEFAULT_GRACE
        """Seconds that kubelet gives the agent to stop."""
        self._ending = ""
        """How the DaemonSet ends, as the watch has told; "" while it does not end."""

    async def follow(self) -> None:
        """Find out the DaemonSet's name, then watch the DaemonSet until cancelled.

        Whoever deletes all of the agent's objects at once deletes its permissions too, often
        before the agent is told to stop and could ask. A watch that has begun goes on then.
        """
        await self.learn()
        if self._daemonset is None:
            return
        await self._until_may_list()
        watch = ListWatch(
            self._api,
            Resource(
                name="daemonsets",
                path=self._daemonsets,
                selector={"fieldSelector": f"metadata.name={self._daemonset}"},
                key=projection.name,
                project=projection.deleting,
                own_namespace_only=True,
            ),
        )
        async with contextlib.aclosing(watch.changes()) as changes:
            async for change in changes:
                match change:
                    case Seen(ending):
                        self._ending = "is being deleted" if ending else ""
                    case Gone():
                        self._ending = "is gone"

    async def _until_may_list(self) -> None:
        """Wait for the right to follow the DaemonSet, which the chart of istio-cni does not give.

        Without it `is_uninstall` asks by name all the same.
        """
        told = False
        while True:
            try:
                selector = {"fieldSelector": f"metadata.name={self._daemonset}", "limit": "1"}
                await self._api.get(self._daemonsets, params=selector)
            except ApiError as error:
                if error.status != _FORBIDDEN:
                    return  # whoever follows it says what is wrong
                if not told:
                    told = True
                    log.info(
                        "own DaemonSet is not followed; it is asked for at the stop",
                        reason=str(error),
                    )
                await asyncio.sleep(_RIGHTS_AGAIN)
            else:
                return

    async def learn(self) -> None:
        """Find out the DaemonSet's name; returns once it is known, or that there is none."""
        try:
            self._daemonset = await retried(self._owner, longest=_LONGEST_PAUSE, warn=self._warn)
        except _UnclearError as error:
            log.warning("an uninstall will not be noticed", reason=str(error))

    def _warn(self, error: ApiError) -> None:
        log.warning("own pod cannot be read", pod=self._pod_name, error=str(error))

    async def is_uninstall(self, *, timeout: float = _TIMEOUT) -> bool:  # noqa: ASYNC109 - one limit for all its requests
        """Whether no agent will follow this one; False where that cannot be told.

        `timeout` is in seconds. Raises nothing.
        """
        try:
            async with asyncio.timeout(timeout):
                reason = await self._reason()
        except TimeoutError:
            reason = self._remembered(f"no answer from the API in {timeout:g} s")
        except (ApiError, _UnclearError, UnknownConditionError) as error:
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
        """What the watch has told of the DaemonSet's end; `trouble` is why it cannot be asked."""
        if self._ending:
            return f"DaemonSet {self._daemonset} {self._ending}"
        log.warning("taken for an upgrade", reason=trouble)
        return None

    async def _reason(self) -> str | None:
        unread = None
        try:
            # Asked again, because another DaemonSet may have adopted the pod.
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
            # A 404 to everything does not come from the API server.
            if unread is not None:
                raise _UnclearError(
                    f"no DaemonSet, and own pod cannot be read: {unread}"
                ) from error
            return f"DaemonSet {self._daemonset} is gone"
        if projection.deleting(daemonset):
            return f"DaemonSet {self._daemonset} is being deleted"
        if not selects(daemonset, await self._api.get(self._node)):
            return f"DaemonSet {self._daemonset} does not select this node"
        return None

    async def _owner(self) -> str:
        """Raises ``ApiError``, ``_UnclearError``."""
        pod = await self._api.get(f"{self._pods}/{quote(self._pod_name, safe='')}")
        match pod:
            case {"spec": {"terminationGracePeriodSeconds": int(seconds)}}:
                self.grace = float(seconds)
        try:
            owner = projection.controller(pod, "DaemonSet")
        except ProjectionError as error:
            raise ApiError(f"pod {self._pod_name} is odd: {error}") from error
        if owner is None:
            raise _UnclearError(f"pod {self._pod_name} belongs to no DaemonSet")
        return owner
