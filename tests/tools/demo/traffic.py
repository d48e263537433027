"""Traffic that runs while something else happens."""

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from typing import Self

from tests.lab.apps import Conversation, IPAddress, ask, conversation
from tests.lab.pod import Pod
from tests.tools.demo.node import PORT
from tests.tools.demo.programs import settled

INTERVAL = 0.02
"""Seconds between the starts of two short connections, and between two lines on a long one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """Connections by what became of them."""

    made: int
    failed: int

    def __sub__(self, earlier: Self) -> Self:
        return replace(self, made=self.made - earlier.made, failed=self.failed - earlier.failed)

    def __str__(self) -> str:
        return f"{self.made} connections, {self.failed} failed"


class Stream:
    """Short connections at a steady rate, however long each takes."""

    def __init__(self, client: Pod, addresses: Sequence[IPAddress]) -> None:
        """From `client` to each of `addresses` in turn."""
        self.failures: list[str] = []
        """Why, one for each connection that failed."""
        self.slowest = 0.0
        """Seconds."""
        self._made = 0
        self._client = client
        self._addresses = itertools.cycle(addresses)

    @contextlib.asynccontextmanager
    async def flowing(self) -> AsyncIterator[None]:
        """Start connections during the block; at its end all have ended."""
        async with asyncio.TaskGroup() as connections:
            starting = connections.create_task(self._start(connections), name="stream")
            try:
                yield
            finally:
                starting.cancel()

    @property
    def tally(self) -> Tally:
        """Those that have ended so far."""
        return Tally(made=self._made, failed=len(self.failures))

    async def more(self, count: int) -> None:
        """Wait until `count` more have been made, or one more has failed."""
        before = self.tally

        def enough() -> bool:
            since = self.tally - before
            return since.made >= count or since.failed > 0

        await settled(enough)

    async def _start(self, connections: asyncio.TaskGroup) -> None:
        while True:
            connections.create_task(self._connect(next(self._addresses)), name="connection")
            await asyncio.sleep(INTERVAL)

    async def _connect(self, address: IPAddress) -> None:
        started = time.monotonic()
        try:
            await ask(self._client, address, PORT)
        except (OSError, EOFError, AssertionError) as error:
            self.failures.append(str(error) or type(error).__name__)
        else:
            self._made += 1
        self.slowest = max(self.slowest, time.monotonic() - started)


class LongLived:
    """One connection that exchanges a line now and then."""

    def __init__(self) -> None:
        self.exchanged = 0
        self.broken: str | None = None
        """What ended it."""
        self.ended = 0.0
        """When that was, by the monotonic clock."""

    @contextlib.asynccontextmanager
    async def open(self, client: Pod, address: IPAddress) -> AsyncIterator[Self]:
        """Talk during the block. Raises ``OSError``, ``EOFError`` where it cannot be opened."""
        async with conversation(client, address, PORT) as talk, asyncio.TaskGroup() as tasks:
            talking = tasks.create_task(self._talk(talk), name="long-lived connection")
            try:
                yield self
            finally:
                talking.cancel()

    async def _talk(self, talk: Conversation) -> None:
        try:
            while True:
                await talk.echo(f"line {self.exchanged}")
                self.exchanged += 1
                await asyncio.sleep(INTERVAL)
        except (OSError, EOFError) as error:
            self.broken, self.ended = str(error) or type(error).__name__, time.monotonic()
