"""Moving a node between backends and owners, with traffic running through a real stub."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from nodeagent.netfilter.iptables_programs import Variant, restore
from nodeagent.netfilter.rule import Family
from tests.agent.processes import Node, Stub
from tests.eventually import eventually
from tests.lab import istio
from tests.lab.apps import ask, conversation, echo_app
from tests.lab.lab import Lab
from tests.lab.pod import Pod
from tests.lab.xtables import FOREIGN, inside, listing

APP = 8080
BACKENDS = {
    "nftables": {"native_nftables": "true", "force_iptables_binary": ""},
    "nft": {"native_nftables": "false", "force_iptables_binary": "nft"},
    "legacy": {"native_nftables": "false", "force_iptables_binary": "legacy"},
}


@pytest.fixture
def pair(lab: Lab) -> tuple[Pod, Pod]:
    """A client and a server."""
    return lab.add_pod("client"), lab.add_pod("server")


@pytest.fixture
async def stub(node: Node) -> AsyncIterator[Stub]:
    started = Stub(node)
    yield started
    await started.stop()


class Traffic:
    """Connections from client to server, one after the other; in both families."""

    def __init__(self) -> None:
        self.made = 0
        self.failures: list[BaseException] = []

    async def flow(self, client: Pod, server: Pod) -> None:
        while True:
            for address in server.addresses:
                try:
                    await ask(client, address, APP)
                except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
                    self.failures.append(error)
                self.made += 1
            await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def traffic(client: Pod, server: Pod) -> AsyncIterator[Traffic]:
    async with contextlib.AsyncExitStack() as apps:
        for address in server.addresses:
            await apps.enter_async_context(echo_app(server, address, APP))
        running = Traffic()
        task = asyncio.create_task(running.flow(client, server))
        try:
            yield running
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


def standing(pod: Pod) -> dict[str, bool]:
    """In which of the three languages rules of ours stand."""
    return {
        "nftables": "istio-ambient" in pod.shell("nft list ruleset"),
        **{
            variant.value: any("ISTIO_" in listing(pod, variant, family) for family in Family)
            for variant in Variant
        },
    }


async def test_from_backend_to_backend(node: Node, pair: tuple[Pod, Pod], stub: Stub) -> None:
    """L8: each change takes one restart of the agent; nothing is left over, and nothing fails."""
    client, server = pair
    for pod in pair:
        node.write(pod)
    node.start()
    for pod in pair:
        await node.until_state(pod, "enrolled")
    async with (
        traffic(client, server) as running,
        conversation(client, server.v4, APP) as lasting,
    ):
        for backend in ("nft", "legacy", "nftables", "legacy", "nft", "nftables"):
            assert await node.stop() == 0
            node.flags |= BACKENDS[backend]
            node.start()
            for pod in pair:
                await node.until_state(pod, "enrolled")
            for pod in pair:
                only = {name: name == backend for name in BACKENDS}
                assert standing(pod) == only, backend
            so_far = running.made
            await eventually(lambda so_far=so_far: running.made > so_far + 4)  # type: ignore[misc]
            assert await lasting.echo(backend) == backend
        assert running.failures == []
    assert stub.connections("outbound") >= running.made - 2
    assert stub.connections("inbound") >= running.made - 2


@pytest.mark.parametrize("variant", Variant)
async def test_taking_over_from_istios_own_agent(
    node: Node, pair: tuple[Pod, Pod], stub: Stub, variant: Variant
) -> None:
    """L7: its chains and policy rules go once ours stand; rules of others stay to the byte."""
    for pod in pair:
        for family in Family:
            inside(pod, restore, variant, family, FOREIGN)
    foreign = {(pod, family): listing(pod, variant, family) for pod in pair for family in Family}
    for pod in pair:
        istio.enroll(pod, variant)
        node.write(pod, annotations={"ambient.istio.io/redirection": "enabled"})
    node.start()
    for pod in pair:
        await node.until_state(pod, "enrolled")
        assert standing(pod)["nftables"]
        assert pod.shell("ip rule").count("lookup 100") == 1
        for family in Family:
            assert without_empty(listing(pod, variant, family)) == without_empty(
                foreign[pod, family]
            )
    async with traffic(*pair) as running:
        await eventually(lambda: running.made > 10)
        assert running.failures == []
    assert stub.connections("inbound") > 0


def without_empty(text: str) -> str:
    """Leave out tables in which nothing stands: that one was made cannot be undone."""
    tables = text.split("*")
    return "*".join(table for table in tables if "-A" in table)


async def test_choice_is_the_same_at_the_next_start(node: Node, pair: tuple[Pod, Pod]) -> None:
    """L7: without a forced variant it is found out once and remembered."""
    client, _ = pair
    node.flags["native_nftables"] = "false"
    node.write(client)
    seen = []
    for _ in range(2):
        node.start()
        await node.until_state(client, "pending")
        seen.append(standing(client))
        assert await node.stop() == 0
    assert seen[0] == seen[1]
    assert sum(seen[0].values()) == 1
