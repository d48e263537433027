"""Values on their way to the API server: for each key the latest, until the server has it.

Each key has a task while it has something to deliver, and a task tries until it succeeds.
"""

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

import structlog

from nodeagent.cluster.api import ApiError

log = structlog.get_logger()

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 15.0
"""Seconds between two attempts for one key, at the first failure and at the most."""
_LONGEST_RETRY_AFTER = 60.0
"""Seconds; a Retry-After beyond that is a server's mistake."""
QUIET = 10.0
"""Seconds of trouble that are not logged; that the agent is denied is logged at once."""
REQUEST_TIMEOUT = 10.0
"""Seconds for one request, which takes one of the places."""
_LAST_ATTEMPT = 1.0
"""Seconds that a stopping agent waits for what is not delivered yet."""


class Outbox(Generic[K, V]):
    """Delivers in the background; the failure of one key does not delay another.

    A value that is replaced before its turn is never sent. Two deliveries for one key
    never overlap. Memory: one value for each key that is not delivered yet.
    """

    def __init__(
        self, deliver: Callable[[V], Awaitable[None]], *, what: str, needs: str, at_once: int
    ) -> None:
        """`deliver` raises ``ApiError`` where it has to be tried again.

        `what` and `needs` are for people: what is delivered, and the permission for it.
        """
        self._deliver = deliver
        self._what = what
        self._needs = needs
        self._places = asyncio.Semaphore(at_once)
        self._waiting: dict[K, V] = {}
        self._running: set[K] = set()
        self._troubles: dict[K, int | None] = {}
        """The HTTP status of the last failure of each key that is not delivered since."""
        self._troubled_since = 0.0
        self._told: set[int | None] = set()
        """The statuses that were logged since everything was delivered last."""
        self._tasks: asyncio.TaskGroup | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, key: K) -> bool:
        return key in self._waiting

    def put(self, key: K, value: V) -> None:
        """Deliver `value`, and nothing that was put under `key` before."""
        if self._waiting.get(key) != value:
            self._waiting[key] = value
            self._start(key)

    def drop(self, key: K) -> None:
        """Deliver nothing under `key` any more."""
        self._waiting.pop(key, None)

    async def run(self) -> None:
        """Deliver until cancelled; then try once more, for a second at the most."""
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                for key in self._waiting:
                    self._start(key)
                try:
                    await asyncio.Event().wait()
                finally:
                    self._tasks = None  # a group that ends takes no task
        finally:
            await self._last_attempt()

    def _start(self, key: K) -> None:
        if self._tasks is not None and key not in self._running:
            self._running.add(key)
            self._tasks.create_task(self._work(key), name=f"{self._what} {key}")

    async def _work(self, key: K) -> None:
        failures = 0
        try:
            while key in self._waiting:
                try:
                    await self._attempt(key)
                except ApiError as error:
                    self._troubled(key, error)
                    await asyncio.sleep(_pause(failures, error))
                    failures += 1
                except Exception:
                    # A fault of ours in one delivery must not end the others'.
                    log.exception("unexpected failure", what=self._what, key=str(key))
                    await asyncio.sleep(_LONGEST_PAUSE)
                else:
                    self._untroubled(key)
                    failures = 0
        finally:
            self._running.discard(key)
            self._untroubled(key)

    async def _attempt(self, key: K) -> None:
        async with self._places:
            value = self._waiting.get(key)
            if value is None:
                return
            try:
                async with asyncio.timeout(REQUEST_TIMEOUT):
                    await self._deliver(value)
            except TimeoutError as error:
                raise ApiError(f"no answer in {REQUEST_TIMEOUT:.0f} s") from error
            if self._waiting.get(key) is value:
                del self._waiting[key]

    async def _last_attempt(self) -> None:
        async def attempt(key: K) -> None:
            with contextlib.suppress(ApiError):
                await self._attempt(key)

        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_ATTEMPT), asyncio.TaskGroup() as tasks:
                for key in self._waiting:
                    tasks.create_task(attempt(key), name=f"last {self._what} {key}")
        if self._waiting:
            log.warning("given up at the stop", what=self._what, count=len(self._waiting))

    def _troubled(self, key: K, error: ApiError) -> None:
        now = asyncio.get_running_loop().time()
        if not self._troubles:
            self._troubled_since = now
        self._troubles[key] = error.status
        lasts = error.denied or now - self._troubled_since >= QUIET
        # One line for an API server that is away, not one for each pod.
        if lasts and error.status not in self._told:
            self._told.add(error.status)
            needs = {"needs": self._needs} if error.denied else {}
            log.warning("cannot be delivered yet", what=self._what, error=str(error), **needs)

    def _untroubled(self, key: K) -> None:
        self._troubles.pop(key, None)
        if not self._troubles and self._told:
            self._told.clear()
            log.info("delivered again", what=self._what)


def _pause(failures: int, error: ApiError) -> float:
    # Random, so that the nodes of a cluster do not come back at one moment.
    step: float = min(_FIRST_PAUSE * 2 ** min(failures, 16), _LONGEST_PAUSE)
    retry_after = min(error.retry_after or 0.0, _LONGEST_RETRY_AFTER)
    return retry_after + step * random.uniform(0.5, 1)  # noqa: S311 - spreads load, guards nothing
