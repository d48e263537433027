"""One look at the node serves all pods that ask at one moment."""

import asyncio
from collections.abc import Mapping

import pytest

from nodeagent.mesh.errors import RetryError
from nodeagent.netns.shared_scan import SharedScan


class Node:
    """What a look finds; counts the passes."""

    def __init__(self, **found: int) -> None:
        self.found = found
        self.passes = 0
        self.failure: str | None = None

    async def look(self) -> Mapping[str, int]:
        self.passes += 1
        found = dict(self.found)
        await asyncio.sleep(0)
        if self.failure:
            raise RetryError(self.failure)
        return found


async def test_one_look_for_all() -> None:
    """250 pods that ask at once share a look, and so do those that ask a moment later."""
    node = Node(**{f"p{n}": n for n in range(250)})
    scan = SharedScan(node.look, apart=0)
    half = [scan.ask(f"p{n}") for n in range(125)]
    assert await asyncio.gather(*half) == list(range(125))
    rest = [scan.ask(f"p{n}") for n in range(125, 250)]
    assert await asyncio.gather(*rest) == list(range(125, 250))
    assert node.passes == 1


async def test_who_comes_back_gets_a_newer_one() -> None:
    """L14: the answer that was no good is not given again, and nothing found is no answer."""
    node = Node(web=1)
    scan = SharedScan(node.look, apart=0)
    assert await scan.ask("web") == 1
    node.found = {"web": 2, "db": 3}
    assert await scan.ask("web") == 2
    assert await scan.ask("none") is None
    node.found = {"none": 4}
    assert await scan.ask("none") == 4


async def test_what_starts_during_a_look() -> None:
    """A pod that asks while a look runs is not told what was before it asked."""
    node = Node()
    scan = SharedScan(node.look, apart=0)
    first = asyncio.create_task(scan.ask("web"), name="first")
    while not node.passes:  # noqa: ASYNC110 - the look has no event
        await asyncio.sleep(0)
    node.found = {"web": 1}
    assert await scan.ask("web") == 1
    assert await first is None


async def test_failure_is_shared() -> None:
    """A look that fails fails for all who waited for it, and is not made again for each."""
    node = Node()
    node.failure = "away"
    scan = SharedScan(node.look, apart=0)
    asks = [scan.ask(str(n)) for n in range(100)]
    results = await asyncio.gather(*asks, return_exceptions=True)
    assert {str(error) for error in results} == {"away"}
    assert all(isinstance(error, RetryError) for error in results)
    assert node.passes == 1
    node.failure = None
    assert await scan.ask("1") is None


async def test_cancelled_leader() -> None:
    """Whoever waits gets a look, also where the one who started it was cut off."""
    node = Node(web=1)
    scan = SharedScan(node.look, apart=0)
    leader = asyncio.create_task(scan.ask("other"), name="leader")
    await asyncio.sleep(0)
    waiting = asyncio.create_task(scan.ask("web"), name="waiting")
    await asyncio.sleep(0)
    leader.cancel()
    assert await waiting == 1
    with pytest.raises(asyncio.CancelledError):
        await leader


async def test_looks_are_kept_apart() -> None:
    """Pods that are not found, and ask again and again, do not keep the node busy."""
    node = Node()
    scan = SharedScan(node.look, apart=0.05)
    now = asyncio.get_running_loop().time
    began = now()
    for _ in range(4):
        await scan.ask("none")
    assert now() - began >= 3 * 0.05
