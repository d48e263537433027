"""Connections between two pods, while something else happens."""

import contextlib
from collections.abc import AsyncIterator

from tests.eventually import eventually
from tests.lab.apps import conversation, echo_app
from tests.node.node import Node
from tests.node.pod import Pod
from tests.tools.demo.node import PORT
from tests.tools.demo.programs import settled
from tests.tools.demo.traffic import LongLived, Stream

_A_FEW = 5


@contextlib.asynccontextmanager
async def serving(pod: Pod) -> AsyncIterator[None]:
    """Have an app listen in the pod, on each of its addresses."""
    async with contextlib.AsyncExitStack() as stack:
        for address in pod.addresses:
            await stack.enter_async_context(echo_app(pod.inside, address, PORT))
        yield


@contextlib.asynccontextmanager
async def undisturbed(node: Node, client: Pod, server: Pod) -> AsyncIterator[Stream]:
    """Traffic during the block: at its end not one has failed, and all went through ztunnel."""
    before = node.sent(client)
    async with serving(server):
        stream = Stream(client.inside, server.addresses)
        async with stream.flowing():
            await stream.more(_A_FEW)
            yield stream
            await stream.more(_A_FEW)
    assert stream.failures == []
    await settled(lambda: node.sent(client) - before >= stream.tally.made)
    assert node.sent(client) - before == stream.tally.made


@contextlib.asynccontextmanager
async def talking(client: Pod, server: Pod) -> AsyncIterator[None]:
    """One connection that is open, and in use, during the block."""
    async with serving(server), LongLived().open(client.inside, server.addresses[0]) as talk:
        yield
        said = talk.exchanged
        await eventually(lambda: talk.exchanged > said or talk.broken is not None)
        assert talk.broken is None


async def through(client: Pod, server: Pod) -> bool:
    """Whether connections made now leave the client through ztunnel. Raises ``OSError``."""
    proxied = set()
    async with serving(server):
        for address in server.addresses:
            async with conversation(client.inside, address, PORT) as talk:
                # ztunnel's own connection has a port of its own.
                proxied.add(int(talk.greeting[2]) != talk.local[1])
    assert len(proxied) == 1, "one family goes through ztunnel, and the other does not"
    return proxied.pop()
