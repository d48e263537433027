"""How ztunnels come to an agent: connected as soon as it listens."""

import asyncio

from tests.agent.processes import Node
from tests.eventually import PATIENCE, eventually, listens
from tests.zds.model import ModelZtunnel


async def ready(node: Node) -> None:
    """Wait until the agent listens."""
    await eventually(lambda: listens(node.zds))


def connect(node: Node, ztunnels: list[ModelZtunnel]) -> ModelZtunnel:
    """Connect one more, which `ztunnels` then owns. Raises ``OSError``."""
    ztunnels.append(ModelZtunnel(node.zds))
    return ztunnels[-1]


async def reconnected(node: Node, ztunnels: list[ModelZtunnel]) -> ModelZtunnel:
    """Connect as ztunnel does: again and again until somebody listens."""
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                ztunnel = connect(node, ztunnels)
            except OSError:
                await asyncio.sleep(0.01)
                continue
            if await ztunnel.snapshot_came():
                return ztunnel
