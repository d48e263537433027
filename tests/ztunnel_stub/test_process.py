"""The command `ztunnel-stub`, as a process."""

import asyncio
import json
import os
import signal
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.eventually import PATIENCE
from tests.ztunnel_stub.agent import Agent
from tests.ztunnel_stub.harness import eventually
from tests.ztunnel_stub.pods import Pod

COMMAND = os.path.join(os.path.dirname(sys.executable), "ztunnel-stub")


@asynccontextmanager
async def process(*arguments: str, before: tuple[str, ...] = ()) -> AsyncIterator[Process]:
    """The stub, until the block's end at the latest."""
    stub = await asyncio.create_subprocess_exec(*before, COMMAND, *arguments, stderr=PIPE)
    try:
        yield stub
    finally:
        if stub.returncode is None:
            stub.kill()
        await stub.communicate()


async def ended(stub: Process) -> tuple[int | None, str]:
    """Its status and what it wrote."""
    async with asyncio.timeout(PATIENCE):
        _, errors = await stub.communicate()
    return stub.returncode, errors.decode()


def options(agent: Agent, directory: str, *more: str) -> list[str]:
    return [
        f"--inpod-uds={agent.path}",
        f"--admin-address=unix:{directory}/admin",
        f"--readiness-address=unix:{directory}/ready",
        *more,
    ]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_it_with_status_0(
    agent: Agent, directory: str, pod: Pod, number: signal.Signals
) -> None:
    """It closes its connection, drains and says so, one JSON object a line."""
    async with process(*options(agent, directory)) as stub:
        with await agent.session() as session:
            assert await session.add("a", pod.netns.fd, "web") == ""
            stub.send_signal(number)
            assert await session.ended()
        status, output = await ended(stub)
    assert status == 0
    lines: list[dict[str, Any]] = [json.loads(line) for line in output.splitlines()]
    assert "workload drains" in [line["event"] for line in lines]
    assert lines[-1]["event"] == "stopped"
    assert {line["level"] for line in lines} == {"info"}


async def test_every_message_is_recorded(agent: Agent, directory: str, pod: Pod) -> None:
    """One JSON line for each packet in either direction, also one that is no message."""
    record = f"{directory}/record"
    more = ("--record", record, "--fault", "garbage:1")

    def recorded() -> list[dict[str, Any]]:
        with open(record, encoding="utf-8") as file:
            return [json.loads(line) for line in file]

    async with process(*options(agent, directory, *more)):
        with await agent.session() as session:
            assert await session.ask_raw(b"\x2a\x03\x0a\x01b") == b"\xff" * 16
            assert await session.add("a", pod.netns.fd, "web") == ""
            await eventually(lambda: len(recorded()) >= 5)
    lines = recorded()
    info = {"name": "web", "namespace": "shop", "service_account": "clerk"}
    inode = pod.netns.id.inode
    assert all(line.pop("time").endswith("+00:00") for line in lines)
    assert lines[:5] == [
        {"direction": "sent", "type": "ZdsHello", "size": 2, "descriptors": 0,
         "message": {"version": "V1"}},
        {"direction": "received", "type": "WorkloadRequest", "size": 5, "descriptors": 0,
         "message": {"keep": {"uid": "b"}}},
        {"direction": "sent", "type": "WorkloadResponse", "size": 16, "descriptors": 0,
         "undecodable": "ff" * 16},
        {"direction": "received", "type": "WorkloadRequest", "size": 25, "descriptors": 1,
         "message": {"add": {"uid": "a", "workload_info": info}}, "netns_inode": inode},
        {"direction": "sent", "type": "WorkloadResponse", "size": 2, "descriptors": 0,
         "message": {"ack": {}}},
    ]  # fmt: skip


async def test_the_socket_can_be_named_by_the_environment(
    agent: Agent, directory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """INPOD_UDS is ztunnel's own name for it."""
    monkeypatch.setenv("INPOD_UDS", agent.path)
    async with process(*options(agent, directory)[1:]):
        (await agent.session()).close()


@pytest.mark.parametrize(
    ("before", "remedy"),
    [
        (("unshare", "--user"), "CAP_SYS_ADMIN"),
        (("setpriv", "--bounding-set=-net_admin,-net_raw"), "CAP_NET_ADMIN"),
    ],
)
async def test_a_missing_privilege_is_one_line_with_a_remedy(
    agent: Agent, directory: str, before: tuple[str, ...], remedy: str
) -> None:
    """It does not start only to refuse every pod."""
    async with process(*options(agent, directory), before=before) as stub:
        status, output = await ended(stub)
    assert status == 1
    (line,) = output.splitlines()
    assert line.startswith("ztunnel-stub: may not")
    assert remedy in line


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ("--admin-address=unix:/nowhere/admin", "cannot listen on unix:/nowhere/admin"),
        ("--record=/nowhere/record", "cannot record to /nowhere/record"),
    ],
)
async def test_what_cannot_be_opened_is_one_line(
    agent: Agent, directory: str, wrong: str, complaint: str
) -> None:
    """The stub ends at once and names what it could not open."""
    async with process(*options(agent, directory, wrong)) as stub:
        status, output = await ended(stub)
    assert status == 1
    assert output.splitlines()[-1].startswith(f"ztunnel-stub: {complaint}")
    assert "Traceback" not in output


async def test_a_taken_port_is_one_line(agent: Agent, directory: str) -> None:
    """Also where the other end of the trouble is another program."""
    with socket.create_server(("0.0.0.0", 0)) as taken:
        address = f"0.0.0.0:{taken.getsockname()[1]}"
        wrong = f"--readiness-address={address}"
        async with process(*options(agent, directory, wrong)) as stub:
            status, output = await ended(stub)
    assert status == 1
    line = output.splitlines()[-1]
    assert line.startswith(f"ztunnel-stub: cannot listen on {address}: ")
    assert "in use" in line
