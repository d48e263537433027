"""An agent, pods, and the stub between them."""

import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.ztunnel_stub.agent import Agent, Session
from tests.ztunnel_stub.harness import Logs, Stub, StubFactory
from tests.ztunnel_stub.pods import Pod

PodFactory = Callable[..., Pod]


@pytest.fixture
def directory() -> Iterator[str]:
    """A path that is short enough for the name of a socket."""
    with tempfile.TemporaryDirectory(prefix="stub") as path:
        yield path


@pytest.fixture
def agent(directory: str) -> Iterator[Agent]:
    agent = Agent(f"{directory}/zds.sock")
    yield agent
    agent.close()


@pytest.fixture
def make_pod() -> Iterator[PodFactory]:
    with ExitStack() as stack:

        def make(*commands: str) -> Pod:
            pod = Pod(*commands)
            stack.callback(pod.close)
            return pod

        yield make


@pytest.fixture
def pod(make_pod: PodFactory) -> Pod:
    return make_pod()


@pytest.fixture
def logs() -> Iterator[Logs]:
    with capture_logs() as lines:
        yield Logs(lines)


@pytest.fixture
async def start_stub(
    agent: Agent,
    directory: str,
    logs: Logs,  # noqa: ARG001 - what the stub says is kept from before its start
) -> AsyncIterator[StubFactory]:
    async with AsyncExitStack() as stack:

        async def start(**settings: Any) -> Stub:
            stub = Stub(agent.path, directory, settings)
            stack.push_async_callback(stub.stop)
            return stub

        yield start


@pytest.fixture
async def stub(start_stub: StubFactory) -> Stub:
    return await start_stub()


@pytest.fixture
async def session(stub: Stub, agent: Agent) -> AsyncIterator[Session]:  # noqa: ARG001
    """A connection whose snapshot is complete, and empty."""
    with await agent.session() as session:
        assert await session.snapshot_sent() == ""
        yield session
