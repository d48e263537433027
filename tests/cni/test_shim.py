"""The binary with an agent that answers: it hands over what comes, both ways."""

import asyncio
import json
import os
from pathlib import Path

import pytest

from tests.cni.shim_process import (
    ORDINARY,
    PREVIOUS,
    Finished,
    ModelAgent,
    configuration,
    run,
    start,
    stranger,
)

COMMANDS = ["ADD", "CHECK", "DEL", "GC", "STATUS"]
ERROR = b'{"cniVersion":"1.0.0","code":11,"msg":"ztunnel has not \\u2026 answered"}\n'


@pytest.mark.parametrize("command", COMMANDS)
async def test_request_reaches_the_agent_as_it_came(
    shim: Path, model_agent: ModelAgent, command: str
) -> None:
    """The agent has CNI's variables and standard input to the byte, and nothing else."""
    stdin = configuration(model_agent.socket)
    await run(shim, command, stdin, CNI_NETNS="/proc/7/ns/net", CNI_IFNAME="", SECRET="x", CN_="y")
    (request,) = model_agent.requests
    assert (request.method, request.path) == ("POST", "/cni")
    environment, received = model_agent.bodies[0].split(b"\0\0", 1)
    assert received == stdin
    assert set(environment.decode().split("\0")) == {
        f"CNI_COMMAND={command}",
        f"CNI_ARGS={ORDINARY}",
        "CNI_NETNS=/proc/7/ns/net",
        "CNI_IFNAME=",
    }


@pytest.mark.parametrize("command", COMMANDS)
async def test_success_is_passed_on_untouched(
    shim: Path, model_agent: ModelAgent, command: str
) -> None:
    """The agent's result is printed byte for byte, and the exit status is 0."""
    assert await run(shim, command, configuration(model_agent.socket)) == Finished(0, PREVIOUS)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("status", [400, 500, 503])
async def test_failure_is_passed_on_untouched(
    shim: Path, model_agent: ModelAgent, command: str, status: int
) -> None:
    """The agent's error is printed byte for byte, and the exit status is 1."""
    model_agent.status, model_agent.body = status, ERROR
    assert await run(shim, command, configuration(model_agent.socket)) == Finished(1, ERROR)


@pytest.mark.parametrize("command", ["CHECK", "DEL", "GC", "STATUS"])
async def test_success_may_say_nothing(shim: Path, model_agent: ModelAgent, command: str) -> None:
    """Commands that have no result succeed with an empty answer."""
    model_agent.body = b""
    assert await run(shim, command, configuration(model_agent.socket)) == Finished(0, b"")


async def test_largest_input_and_answer_pass(checked_shim: Path, model_agent: ModelAgent) -> None:
    """A mebibyte passes in each direction."""
    empty = configuration(model_agent.socket, b'{"x":""}')
    filling = b"x" * (1024 * 1024 - len(empty))
    model_agent.body = b'{"y":"' + b"y" * (1024 * 1024 - 8) + b'"}'
    done = await run(
        checked_shim, "ADD", configuration(model_agent.socket, b'{"x":"%b"}' % filling)
    )
    assert done == Finished(0, model_agent.body)
    assert len(model_agent.bodies[0].split(b"\0\0", 1)[1]) == 1024 * 1024


async def test_refusal_of_a_request_half_sent(checked_shim: Path, tmp_path: Path) -> None:
    """An agent that refuses before it has read everything is heard all the same."""

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 No\r\nContent-Length: %d\r\n\r\n%b" % (len(ERROR), ERROR))
        await writer.drain()

    socket = tmp_path / "pluginevent.sock"
    stdin = configuration(socket, b'{"x":"' + b"x" * 1_000_000 + b'"}')
    async with stranger(socket, refuse):
        assert await run(checked_shim, "ADD", stdin) == Finished(1, ERROR)


async def test_hundred_at_once(shim: Path, model_agent: ModelAgent) -> None:
    """L5: a hundred pods that start at the same moment are all served."""
    stdin = configuration(model_agent.socket)
    done = await asyncio.gather(*(run(shim, "ADD", stdin) for _ in range(100)))
    assert done == [Finished(0, PREVIOUS)] * 100
    assert len(model_agent.bodies) == 100


async def test_version_needs_no_agent(shim: Path) -> None:
    """VERSION lists every version that the agent speaks, in the caller's own."""
    done = await run(shim, "VERSION", b'{"cniVersion":"0.4.0"}')
    assert done.status == 0
    assert json.loads(done.stdout) == {
        "cniVersion": "0.4.0",
        "supportedVersions": ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"],
    }


@pytest.mark.parametrize("stdin", [b"", b"nonsense", b"{}", b'{"cniVersion":7}'])
async def test_version_without_a_configuration(checked_shim: Path, stdin: bytes) -> None:
    """VERSION answers in the newest version where none is named."""
    done = await run(checked_shim, "VERSION", stdin)
    assert done.status == 0
    assert json.loads(done.stdout)["cniVersion"] == "1.1.0"


async def test_reader_that_has_gone(checked_shim: Path, model_agent: ModelAgent) -> None:
    """A result that nobody reads is a failure, not death by a signal."""
    reader, writer = os.pipe()
    os.close(reader)
    process = await start(checked_shim, {"CNI_COMMAND": "ADD"}, stdout=writer)
    os.close(writer)
    assert process.stdin is not None
    process.stdin.write(configuration(model_agent.socket))
    process.stdin.close()
    assert await process.wait() == 1
    assert process.stderr is not None
    assert await process.stderr.read() == b""


@pytest.mark.parametrize(("command", "printed"), [("ADD", PREVIOUS), ("CHECK", b""), ("DEL", b"")])
async def test_istios_agent_is_back(
    shim: Path, model_agent: ModelAgent, command: str, printed: bytes
) -> None:
    """It has no such path: our entry is in nobody's way, and the chain goes on to Istio's."""
    model_agent.status, model_agent.body = 404, b"404 page not found\n"
    assert await run(shim, command, configuration(model_agent.socket)) == Finished(0, printed)
