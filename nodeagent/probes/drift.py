"""Keeps the host's rules for health probes true between the pods' own looks (L37)."""

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable

import structlog

from nodeagent.mesh.backoff import Backoff
from nodeagent.netfilter.drift import DriftWatch, open_rule_sockets
from nodeagent.netns.netns import Netns
from nodeagent.netns.threads import NetnsThreads
from nodeagent.probes.host_probes import Check, HostProbesError

log = structlog.get_logger()

POLL = 0.5
"""Seconds between looks at what the kernel does not tell of: ipsets and iptables-legacy."""
_SHARE = 20
"""The pause after a look is this many times what the look has cost: 5 % of a core."""
_LONGEST_PAUSE = 1.0
_QUIET = 2.0
"""Seconds without a repair after which the next one is made at once."""
_CONTESTED_FROM = 5
"""Repairs, as for a pod."""


class ProbeWatch:
    """Looks at the host's rules and sets when the kernel tells of a change, and has them mended.

    Where repairs follow each other, somebody else works against the agent: the pauses
    grow to a second, and the log says so. Nobody waits for this but the host's own rules.
    """

    def __init__(
        self,
        threads: NetnsThreads,
        host: Netns,
        check: Callable[[], Awaitable[Check]],
        *,
        poll: float | None,
    ) -> None:
        """`check` looks and mends, and raises `HostProbesError`; `host` is borrowed.

        `poll`: seconds after which there is a look though nothing was heard; None: never.
        """
        self._threads = threads
        self._host = host
        self._check = check
        self._poll = poll
        self._fight = Backoff(longest=_LONGEST_PAUSE)
        self._retry = Backoff()
        self._trouble = ""
        """Why the last look failed; empty if it did not."""
        self._mended = 0
        self._contested_from = _CONTESTED_FROM
        self._last_mended = 0.0

    async def run(self) -> None:
        """Watch until cancelled."""
        heard = asyncio.Event()
        watch = DriftWatch(await self._sockets(), heard.set)
        try:
            while True:
                heard.clear()
                watch.arm()  # before the look: what changes during it is heard
                await asyncio.sleep(await self._look())
                if self._trouble:
                    continue
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._poll):
                        await heard.wait()
        finally:
            watch.close()

    async def _sockets(self) -> tuple[socket.socket, ...]:
        try:
            return await self._threads.run(self._host, open_rule_sockets)
        except OSError as error:
            self._poll = POLL
            log.warning(
                "the kernel does not tell of changes to the host's rules; they are polled",
                seconds=POLL,
                reason=error.strerror,
            )
            return ()

    async def _look(self) -> float:
        """Look once; return the seconds for which there is to be no other look."""
        now = asyncio.get_running_loop().time()
        try:
            check = await self._check()
        except HostProbesError as error:
            if str(error) != self._trouble:
                self._trouble = str(error)
                log.warning("the host's rules for probes cannot be kept", reason=str(error))
            return self._retry.delay()
        self._trouble = ""
        self._retry.reset()
        if check.differed:
            return self._repaired(check, now)
        if now - self._last_mended > _QUIET:
            self._fight.reset()
        return min(_SHARE * check.seconds, _LONGEST_PAUSE)

    def _repaired(self, check: Check, now: float) -> float:
        self._last_mended = now
        self._mended += 1
        log.warning("the host's rules for probes mended", differed=list(check.differed[:10]))
        if self._mended == self._contested_from:
            self._contested_from *= 2
            log.error(
                "something else keeps changing the host's rules for probes", mended=self._mended
            )
        return max(self._fight.delay(), min(_SHARE * check.seconds, _LONGEST_PAUSE))
