"""What the rest of the agent calls to redirect a pod.

The kernel work runs in threads that have entered the pod's netns. Between two calls for the
same netns this class remembers which rules were right, so that rules that nobody has changed
are not read again, and where leftovers could not be removed, so that this is tried less and
less often.
"""

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
        on_drift: Callable[[PodUID], None],
    ) -> None:
        """`on_drift` is called when rules or routes of a watched netns were changed."""
        self._threads = threads
        self._defaults = defaults
        self._backends = backends
        self._on_drift = on_drift
        self._verified = WeakKeyDictionary[Netns, "_Verified"]()
        """For each netns the spec and fingerprint that were right at the last call."""
        self._unswept = WeakKeyDictionary[Netns, "_Unswept"]()
        """Where leftovers of another backend could not be removed."""

    async def watch(self, netns: Netns, uid: PodUID) -> DriftWatch:
        """Listen for changes of rules and routes, on behalf of `uid`."""
        try:
            sockets = await self._threads.run(netns, open_sockets)
        except OSError as error:
            raise RetryError(f"cannot watch the rules: {error.strerror}") from error
        return DriftWatch(sockets, partial(self._on_drift, uid))

    async def ensure(self, netns: Netns, pod: Pod) -> Inspection:
        """Make rules and routes what `pod` should have, and see on which ports nobody listens."""
        spec, warnings = self._defaults.of(pod)
        for warning in warnings:
            _warn_once(warning)
        unswept = self._unswept.get(netns)
        try:
            inspection, verified, swept = await self._threads.run(
                netns,
                partial(
                    _ensure,
                    spec,
                    self._backends,
                    self._verified.get(netns),
                    sweeping=unswept is None or unswept.is_due(),
                ),
            )
        except LoopbackDownError as error:
            # CNI's DEL takes `lo` down, and its routes with it, before the agent hears of the DEL.
            raise TransientError(f"redirection: {error}") from error
        except (RulesError, OSError) as error:
            raise RetryError(f"redirection: {error}") from error
        self._verified.pop(netns, None)
        if verified is not None:
            self._verified[netns] = verified
        if swept is not None:
            _log_removed(swept.removed, netns, pod)
            if unswept is None:
                unswept = _Unswept()
            unswept.note("; ".join((*swept.left, *swept.unseen)))
            if unswept.reason:
                self._unswept[netns] = unswept
            else:
                self._unswept.pop(netns, None)
        return replace(inspection, uncleaned=unswept.reason if unswept else "")

    async def is_installed(self, netns: Netns) -> bool:
        """Whether any redirection of ours is there, whatever spec it was made for.

        True, too, where that cannot be found out.
        """
        try:
            return await self._threads.run(netns, partial(in_pod.is_installed, self._backends))
        except RulesError:
            return True
        except OSError as error:
            raise RetryError(f"looking at the redirection: {error}") from error

    async def inspect(self, netns: Netns, pod: Pod) -> tuple[str, ...]:
        """Say what differs from what `pod` should have, and write nothing."""
        spec, _ = self._defaults.of(pod)
        try:
            return await self._threads.run(netns, partial(in_pod.inspect, spec, self._backends))
        except (RulesError, OSError) as error:
            raise RetryError(f"looking at the redirection: {error}") from error

    async def look(self, netns: Netns, pod: Pod) -> Inspection:
        """Likewise, and see on which ports nobody listens; write nothing."""
        spec, _ = self._defaults.of(pod)
        try:
            return await self._threads.run(netns, partial(_look, spec, self._backends))
        except (RulesError, OSError) as error:
            raise RetryError(f"looking at the redirection: {error}") from error

    async def release(self, netns: Netns, pod: Pod) -> int:
        """Send nothing new to ztunnel; return how many connections go through it still."""
        spec, _ = self._defaults.of(pod)
        try:
            return await self._threads.run(netns, partial(_release, spec, self._backends))
        except (RulesError, OSError) as error:
            raise RetryError(f"releasing the redirection: {error}") from error

    async def remove(self, netns: Netns, pod: Pod) -> bool:
        """Remove everything of ours, and log what; return whether there was anything."""
        try:
            removed = await self._threads.run(netns, partial(in_pod.remove, self._backends))
        except (RulesError, OSError) as error:
            raise RetryError(f"removing the redirection: {error}") from error
        self._verified.pop(netns, None)
        self._unswept.pop(netns, None)
        _log_removed(removed, netns, pod)
        return bool(removed)


_Verified = tuple[RedirectSpec, int]
"""The spec that a netns has, and the fingerprint of its rules then."""


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
    spec: RedirectSpec, backends: Backends, known: _Verified | None, *, sweeping: bool
) -> tuple[Inspection, _Verified | None, Swept | None]:
    fingerprint = backends.fingerprint()  # before reading: a change meanwhile makes another
    verified = None if fingerprint is None else (spec, fingerprint)
    unchanged = verified is not None and verified == known
    differed = in_pod.ensure(spec, backends, rules_are_right=unchanged)
    # Last: no failure of it may keep away what protects the pod (L35).
    swept = backends.sweep() if sweeping and not unchanged else None
    if not unchanged and (swept is None or swept.left or swept.unseen):
        verified = None  # what another backend has is read again
    differed += swept.removed if swept else ()
    inspection = Inspection(differed=differed, silent=_known_silent_ports(spec))
    return inspection, verified, swept  # after a repair the fingerprint is another


def _look(spec: RedirectSpec, backends: Backends) -> Inspection:
    silent = _known_silent_ports(spec)
    return Inspection(differed=in_pod.inspect(spec, backends), silent=silent)


def _known_silent_ports(spec: RedirectSpec) -> tuple[int, ...]:
    """The ports on which nobody listens; none where the kernel cannot be asked for sockets.

    A pod that is redirected has to be handed to ztunnel all the same.
    """
    try:
        return silent_ports(spec)
    except RulesError as error:
        _warn_of_unseen_sockets(str(error))
        return ()


def _release(spec: RedirectSpec, backends: Backends) -> int:
    if not in_pod.is_installed(backends):
        return 0
    in_pod.ensure(replace(spec, leaving=True), backends)
    backends.sweep()  # `remove` says what cannot be removed
    try:
        return open_connections()
    except RulesError as error:
        _warn_of_unseen_sockets(str(error))
        return 1  # there may be some: they have their time


def _log_removed(removed: tuple[str, ...], netns: Netns, pod: Pod) -> None:
    if removed:
        log.info(
            "removed from a pod's network namespace",
            pod=str(pod),
            uid=pod.uid,
            netns=str(netns.id),
            removed=list(removed),
        )


@lru_cache(maxsize=16)
def _warn_of_unseen_sockets(reason: str) -> None:
    log.warning(
        "it cannot be told whether ztunnel listens in pods, and how many connections they have;"
        " on the host: modprobe tcp_diag",
        reason=reason,
    )


@lru_cache(maxsize=1024)
def _warn_once(warning: str) -> None:
    # A pod is inspected every minute; its owner needs to be told once.
    log.warning("annotation ignored", reason=warning)
