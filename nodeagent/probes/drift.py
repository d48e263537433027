"""Keeps the host's rules for health probes right between the looks at pods (L37).

`ProbeWatch` checks the host's rules and sets when the kernel tells of a change to them, and
polls what the kernel does not tell of. Where repairs follow each other, something else
on the node works against the agent: the pauses grow to a second, and the log says so.
Pods do not wait for this.
"""

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable

import structlog

from nodeagent.mesh.backoff import Backoff
from nodeagent.netfilter.drift import DriftWatch, open_rule_sockets
from nodeagent.netns.netns import Netns
from nodeagent.netns.threads import NetnsThreads
from nodeagent.observer import NOBODY, Observer
from nodeagent.probes.host_probes import Check, HostProbesError

log = structlog.get_logger()

POLL_INTERVAL = 0.5
"""Seconds between checks of what the kernel does not tell of: ipsets and iptables-legacy."""
_PAUSE = 20
"""The pause after a check is this many times what the check has taken: 5 % of a core."""
_LONGEST_PAUSE = 1.0
_QUIET = 2.0
"""Seconds without a repair after which the next one is made without a pause."""
_CONTESTED_FROM = 5
"""Repairs after which the rules count as contested, as for a pod."""


class ProbeWatch:
    """Has the host's rules and sets checked, and repaired, when they may have changed."""

    def __init__(
        self,
        threads: NetnsThreads,
        host: Netns,
        check: Callable[[], Awaitable[Check]],
        *,
        poll: float | None,
        observer: Observer = NOBODY,
    ) -> None:
        """`check` reads and repairs, and raises `HostProbesError`; `host` is borrowed.

        `poll`: seconds after which there is a check though nothing was heard; None: never.
        """
        self._threads = threads
        self._host = host
        self._check = check
        self._poll = poll
        self._observer = observer
        self._drift_backoff = Backoff(longest=_LONGEST_PAUSE)
        self._retry = Backoff()
        self._failure = ""
        """Why the last check failed; empty if it did not."""
        self._repairs = 0
        self._contested_from = _CONTESTED_FROM
        self._last_repair = 0.0
        """On the event loop's clock."""

    async def run(self) -> None:
        """Watch until cancelled."""
        wakeup = asyncio.Event()
        watch = DriftWatch(await self._sockets(), wakeup.set)
        try:
            while True:
                wakeup.clear()
                watch.arm()  # before the check: a change during it wakes us
                await asyncio.sleep(await self._check_once())
                if self._failure:
                    continue
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._poll):
                        await wakeup.wait()
        finally:
            watch.close()

    async def _sockets(self) -> tuple[socket.socket, ...]:
        try:
            return await self._threads.run(self._host, open_rule_sockets)
        except OSError as error:
            self._poll = POLL_INTERVAL
            log.warning(
                "the kernel does not tell of changes to the host's rules; they are polled",
                seconds=POLL_INTERVAL,
                reason=error.strerror,
            )
            return ()

    async def _check_once(self) -> float:
        """Check once; return the seconds for which there is to be no other check."""
        now = asyncio.get_running_loop().time()
        try:
            check = await self._check()
        except HostProbesError as error:
            self._observer.host_checked(False)
            if str(error) != self._failure:
                self._failure = str(error)
                log.warning("the host's rules for probes cannot be kept", reason=str(error))
            return self._retry.delay()
        except Exception as error:
            self._observer.host_checked(False)
            # A fault of ours here must not end the agent, on which every pod depends.
            if repr(error) != self._failure:
                self._failure = repr(error)
                log.exception("unexpected failure", work="the host's rules for probes")
            return self._retry.delay()
        self._observer.host_checked(True)
        self._failure = ""
        self._retry.reset()
        if check.drift:
            return self._repaired(check, now)
        if now - self._last_repair > _QUIET:
            self._drift_backoff.reset()
        return min(_PAUSE * check.seconds, _LONGEST_PAUSE)

    def _repaired(self, check: Check, now: float) -> float:
        """Report a repair; return the seconds for which there is to be no other check."""
        self._last_repair = now
        self._repairs += 1
        self._observer.host_repaired()
        log.warning("the host's rules for probes repaired", differed=list(check.drift[:10]))
        if self._repairs == self._contested_from:
            self._contested_from *= 2
            log.error(
                "something else keeps changing the host's rules for probes", repairs=self._repairs
            )
        return max(self._drift_backoff.delay(), min(_PAUSE * check.seconds, _LONGEST_PAUSE))
