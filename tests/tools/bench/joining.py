"""What a client at a steady rate loses while its server joins the mesh and leaves it (L28)."""

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from tests.agent.processes import Node, Stub
from tests.lab.apps import Conversation, conversation, echo_app
from tests.lab.lab import Lab
from tests.lab.pod import Pod
from tests.tools.bench.report import Figure

_PORT = 8080
_CLIENTS = 10
_EVERY = 0.01
_WAYS = {
    "off": {"keep_open_connections": "false", "removal_grace": "0"},
    "on": {"keep_open_connections": "true", "removal_grace": "1"},
}


@dataclass(slots=True)
class Tally:
    """Requests on connections that are kept open; one that breaks is opened anew."""

    made: int = 0
    failed: int = 0

    async def ask(self, client: Pod, server: Pod) -> None:
        while True:
            with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
                async with conversation(client, server.v4, _PORT) as talk:
                    await self._requests(talk)

    async def _requests(self, talk: Conversation) -> None:
        while True:
            self.made += 1
            try:
                await talk.echo("request")
            except (OSError, TimeoutError, asyncio.IncompleteReadError):
                self.failed += 1
                raise
            await asyncio.sleep(_EVERY)


def figures(seconds: float) -> list[Figure]:
    """Join and leave, with the options off and on; `seconds` of traffic after each."""
    found = []
    for way, settings in _WAYS.items():
        joined, left = asyncio.run(_measure(settings, seconds))
        found += [
            Figure(
                what=f"running pod {what}, options {way}: failed requests of a steady client",
                value=f"{tally.failed} of {tally.made}",
                ratio=f"{_CLIENTS} connections kept open",
            )
            for what, tally in (("joins", joined), ("leaves", left))
        ]
    return found


async def _measure(settings: dict[str, str], seconds: float) -> tuple[Tally, Tally]:
    with tempfile.TemporaryDirectory() as directory, Lab() as lab:
        client, server = lab.add_pod("client"), lab.add_pod("server")
        node = Node(Path(directory), **settings)
        node.write(server, labels={})
        node.start()
        stub = Stub(node)
        try:
            await node.until_state(server, "outside")
            async with echo_app(server, server.v4, _PORT):
                async with _asking(client, server) as joined:
                    await asyncio.sleep(seconds)
                    node.write(server)
                    await node.until_state(server, "enrolled")
                    await asyncio.sleep(seconds)
                async with _asking(client, server) as left:
                    await asyncio.sleep(seconds)
                    node.write(server, labels={})
                    await node.until(server, lambda row: row["redirection"] is None)
                    await asyncio.sleep(seconds)
        finally:
            await node.stop()
            await stub.stop()
    return joined, left


@contextlib.asynccontextmanager
async def _asking(client: Pod, server: Pod) -> AsyncIterator[Tally]:
    tally = Tally()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(tally.ask(client, server)) for _ in range(_CLIENTS)]
        yield tally
        for task in tasks:
            task.cancel()
