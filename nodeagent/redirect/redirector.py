"""The rules and routes of pods, kept from the event loop's side."""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from weakref import WeakKeyDictionary

import structlog

from nodeagent.mesh.enrolment import Look
from nodeagent.mesh.errors import RetryError
from nodeagent.mesh.pod import Pod, PodUID
from nodeagent.netns.namespace import NetworkNamespace
from nodeagent.netns.threads import NamespaceThreads
from nodeagent.redirect import pod as in_pod
from nodeagent.redirect.backend import Backends
from nodeagent.redirect.errors import RedirectError
from nodeagent.redirect.intent import Intent
from nodeagent.redirect.rules import PodRedirect
from nodeagent.redirect.serving import open_connections, silent_ports
from nodeagent.redirect.watch import DriftWatch, open_sockets

log = structlog.get_logger()


class PodRedirector:
    """Does the work of `nodeagent.redirect.pod` inside pods; see `mesh.enrolment.Redirector`."""

    def __init__(
        self,
        threads: NamespaceThreads,
        intent: Intent,
        backends: Backends,
        changed: Callable[[PodUID], None],
    ) -> None:
        """`changed` is called when anything in a watched namespace was changed."""
        self._threads = threads
        self._intent = intent
        self._backends = backends
        self._changed = changed
        self._right = WeakKeyDictionary[NetworkNamespace, "_Right"]()
        """What was found right at the last look, until it changes."""

    async def watch(self, namespace: NetworkNamespace, uid: PodUID) -> DriftWatch:
        """Listen for changes of rules and routes, on behalf of `uid`."""
        try:
            sockets = await self._threads.run(namespace, open_sockets)
        except OSError as error:
            raise RetryError(f"cannot watch the rules: {error.strerror}") from error
        return DriftWatch(sockets, partial(self._changed, uid))

    async def ensure(self, namespace: NetworkNamespace, pod: Pod) -> Look:
        """Make rules and routes what `pod` should have, and look who listens."""
        spec, warnings = self._intent.of(pod)
        for warning in warnings:
            _warn_once(warning)
        try:
            look, right = await self._threads.run(
                namespace, partial(_ensure, spec, self._backends, self._right.get(namespace))
            )
        except (RedirectError, OSError) as error:
            raise RetryError(f"redirection: {error}") from error
        self._right.pop(namespace, None)
        if right is not None:
            self._right[namespace] = right
        return look

    async def stands(self, namespace: NetworkNamespace) -> bool:
        """Whether anything of ours is there, whatever it was made for."""
        try:
            return await self._threads.run(namespace, partial(in_pod.stands, self._backends))
        except (RedirectError, OSError) as error:
            raise RetryError(f"looking at the redirection: {error}") from error

    async def inspect(self, namespace: NetworkNamespace, pod: Pod) -> tuple[str, ...]:
        """Say what differs from what `pod` should have, and touch nothing."""
        spec, _ = self._intent.of(pod)
        try:
            return await self._threads.run(namespace, partial(in_pod.inspect, spec, self._backends))
        except (RedirectError, OSError) as error:
            raise RetryError(f"looking at the redirection: {error}") from error

    async def release(self, namespace: NetworkNamespace, pod: Pod) -> int:
        """Send nothing new to ztunnel; return how many connections go through it still."""
        spec, _ = self._intent.of(pod)
        try:
            return await self._threads.run(namespace, partial(_release, spec, self._backends))
        except (RedirectError, OSError) as error:
            raise RetryError(f"releasing the redirection: {error}") from error

    async def remove(self, namespace: NetworkNamespace) -> bool:
        """Take out everything of ours; return whether anything stood there."""
        try:
            removed = await self._threads.run(namespace, partial(in_pod.remove, self._backends))
        except (RedirectError, OSError) as error:
            raise RetryError(f"removing the redirection: {error}") from error
        return bool(removed)


_Right = tuple[PodRedirect, int]
"""What a namespace has, and the fingerprint of its rules then."""


def _ensure(
    spec: PodRedirect, backends: Backends, known: _Right | None
) -> tuple[Look, _Right | None]:
    fingerprint = backends.fingerprint()  # before the look: what changes during it is seen
    right = None if fingerprint is None else (spec, fingerprint)
    differed = in_pod.ensure(spec, backends, rules_are_right=right is not None and right == known)
    look = Look(differed=differed, silent=silent_ports(spec))
    return look, right  # with what was mended the fingerprint is another


def _release(spec: PodRedirect, backends: Backends) -> int:
    if not in_pod.stands(backends):
        return 0
    in_pod.ensure(replace(spec, leaving=True), backends)
    return open_connections()


@lru_cache(maxsize=1024)
def _warn_once(warning: str) -> None:
    # A pod is looked at every minute; its owner needs to be told once.
    log.warning("annotation ignored", reason=warning)
