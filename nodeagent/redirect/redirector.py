"""The rules and routes of pods, kept from the event loop's side."""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from weakref import WeakKeyDictionary

import structlog

from nodeagent.mesh.backoff import Backoff
from nodeagent.mesh.dependencies import Inspection
from nodeagent.mesh.errors import RetryError, TransientError
from nodeagent.mesh.pod import Pod, PodUID
from nodeagent.netfilter.drift import DriftWatch, open_sockets
from nodeagent.netfilter.errors import LoopbackDownError, RulesError
from nodeagent.netns.netns import Netns
from nodeagent.netns.threads import NetnsThreads
from nodeagent.redirect import in_pod
from nodeagent.redirect.backend import Backends, Swept
from nodeagent.redirect.defaults import RedirectDefaults
from nodeagent.redirect.rules import RedirectSpec
from nodeagent.redirect.serving import open_connections, silent_ports

log = structlog.get_logger()

_SWEEP_FIRST, _SWEEP_LONGEST = 1.0, 600.0
"""Seconds between two tries to remove leftovers that could not be removed: from and to."""


class PodRedirector:
    """Does the work of `redirect.in_pod` inside pods; see `mesh.dependencies.Redirector`."""

    def __init__(
        self,
        threads: NetnsThreads,
        defaults: RedirectDefaults,
        backends: Backends,
        changed: Callable[[PodUID], None],
    ) -> None:
        """`changed` is called when anything in a watched namespace was changed."""
        self._threads = threads
        self._defaults = defaults
        self._backends = backends
        self._changed = changed
        self._right = WeakKeyDictionary[Netns, "_Right"]()
        """What was found right at the last look, until it changes."""
        self._unswept = WeakKeyDictionary[Netns, "_Unswept"]()
        """Where leftovers of another backend could not be removed."""

    async def watch(self, namespace: Netns, uid: PodUID) -> DriftWatch:
        """Listen for changes of rules and routes, on behalf of `uid`."""
        try:
            sockets = await self._threads.run(namespace, open_sockets)
        except OSError as error:
            raise RetryError(f"cannot watch the rules: {error.strerror}") from error
        return DriftWatch(sockets, partial(self._changed, uid))

    async def ensure(self, namespace: Netns, pod: Pod) -> Inspection:
        """Make rules and routes what `pod` should have, and look who listens."""
        spec, warnings = self._defaults.of(pod)
        for warning in warnings:
            _warn_once(warning)
        unswept = self._unswept.get(namespace)
        try:
            look, right, swept = await self._threads.run(
                namespace,
                partial(
                    _ensure,
                    spec,
                    self._backends,
                    self._right.get(namespace),
                    sweeping=unswept is None or unswept.is_due(),
                ),
            )
        except LoopbackDownError as error:
            # CNI's DEL takes `lo` down before the agent hears of it, and the routes go with it.
            raise TransientError(f"redirection: {error}") from error
        except (RulesError, OSError) as error:
            raise RetryError(f"redirection: {error}") from error
        self._right.pop(namespace, None)
        if right is not None:
            self._right[namespace] = right
        if swept is not None:
            _say_what_went(swept.removed, namespace, pod)
            if unswept is None:
                unswept = _Unswept()
            unswept.note("; ".join((*swept.left, *swept.unseen)))
            if unswept.reason:
                self._unswept[namespace] = unswept
            else:
                self._unswept.pop(namespace, None)
        return replace(look, uncleaned=unswept.reason if unswept else "")

    async def is_installed(self, namespace: Netns) -> bool:
        """Whether anything of ours is there, whatever it was made for.

        Where that cannot be told, something may be: nobody is told of a pod without.
        """
        try:
            return await self._threads.run(namespace, partial(in_pod.stands, self._backends))
        except RulesError:
            return True
        except OSError as error:
            raise RetryError(f"looking at the redirection: {error}") from error

    async def inspect(self, namespace: Netns, pod: Pod) -> tuple[str, ...]:
        """Say what differs from what `pod` should have, and touch nothing."""
        spec, _ = self._defaults.of(pod)
        try:
            return await self._threads.run(namespace, partial(in_pod.inspect, spec, self._backends))
        except (RulesError, OSError) as error:
            raise RetryError(f"looking at the redirection: {error}") from error

    async def release(self, namespace: Netns, pod: Pod) -> int:
        """Send nothing new to ztunnel; return how many connections go through it still."""
        spec, _ = self._defaults.of(pod)
        try:
            return await self._threads.run(namespace, partial(_release, spec, self._backends))
        except (RulesError, OSError) as error:
            raise RetryError(f"releasing the redirection: {error}") from error

    async def remove(self, namespace: Netns, pod: Pod) -> bool:
        """Take out everything of ours, and log what; return whether anything stood there."""
        try:
            removed = await self._threads.run(namespace, partial(in_pod.remove, self._backends))
        except (RulesError, OSError) as error:
            raise RetryError(f"removing the redirection: {error}") from error
        self._right.pop(namespace, None)
        self._unswept.pop(namespace, None)
        _say_what_went(removed, namespace, pod)
        return bool(removed)


_Right = tuple[RedirectSpec, int]
"""What a namespace has, and the fingerprint of its rules then."""


class _Unswept:
    """When to try again to remove leftovers that could not be removed."""

    def __init__(self) -> None:
        self.reason = ""
        self._backoff = Backoff(first=_SWEEP_FIRST, longest=_SWEEP_LONGEST)
        self._due = 0.0

    def is_due(self) -> bool:
        return time.monotonic() >= self._due

    def note(self, reason: str) -> None:
        self.reason = reason
        self._due = time.monotonic() + self._backoff.delay()


def _ensure(
    spec: RedirectSpec, backends: Backends, known: _Right | None, *, sweeping: bool
) -> tuple[Inspection, _Right | None, Swept | None]:
    fingerprint = backends.fingerprint()  # before the look: what changes during it is seen
    right = None if fingerprint is None else (spec, fingerprint)
    unchanged = right is not None and right == known
    differed = in_pod.ensure(spec, backends, rules_are_right=unchanged)
    # Last: it must not stand before what protects the pod (L35).
    swept = backends.sweep() if sweeping and not unchanged else None
    if not unchanged and (swept is None or swept.left or swept.unseen):
        right = None  # what another backend has is looked at again
    differed += swept.removed if swept else ()
    look = Inspection(differed=differed, silent=silent_ports(spec))
    return look, right, swept  # with what was mended the fingerprint is another


def _release(spec: RedirectSpec, backends: Backends) -> int:
    if not in_pod.stands(backends):
        return 0
    in_pod.ensure(replace(spec, leaving=True), backends)
    backends.sweep()  # what it cannot remove, `remove` says
    return open_connections()


def _say_what_went(removed: tuple[str, ...], namespace: Netns, pod: Pod) -> None:
    if removed:
        log.info(
            "removed from a pod's network namespace",
            pod=str(pod),
            uid=pod.uid,
            netns=str(namespace.id),
            removed=list(removed),
        )


@lru_cache(maxsize=1024)
def _warn_once(warning: str) -> None:
    # A pod is looked at every minute; its owner needs to be told once.
    log.warning("annotation ignored", reason=warning)
