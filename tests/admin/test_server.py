"""The admin socket, and ``nodeagent status`` on its other end."""

import asyncio
import http.client
import os
import socket
import stat
import subprocess
from pathlib import Path

import aiohttp
import pytest

from nodeagent.admin.client import NoAgentError, ask, fetch_workloads
from nodeagent.admin.server import serve_admin, serve_health
from tests.eventually import PATIENCE

_WORKLOAD: dict[str, object] = {
    "namespace": "shop",
    "name": "web",
    "uid": "u1",
    "state": "enrolled",
    "reason": "pod matches a=b",
    "detail": "",
    "since": 1000.0,
    "verified": None,
}


async def get(path: str, url: str) -> tuple[int, str]:
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(path)) as session,
        session.get(f"http://agent{url}") as response,
    ):
        return response.status, await response.text()


async def test_the_agent_tells_its_workloads(tmp_path: Path) -> None:
    """`nodeagent status` gets the rows as they are when it asks."""
    path = str(tmp_path / "run" / "admin.sock")
    rows = [_WORKLOAD]
    async with serve_admin(path, workloads=lambda: rows, missing=list):
        assert await asyncio.to_thread(fetch_workloads, path) == [_WORKLOAD]
        rows.clear()
        assert await asyncio.to_thread(fetch_workloads, path) == []


async def test_readiness_says_what_is_missing(tmp_path: Path) -> None:
    """Not ready is 503 with every reason; alive is 200 all the same."""
    path = str(tmp_path / "admin.sock")
    missing = ["the first list of pods", "the ZDS socket"]
    async with serve_admin(path, workloads=list, missing=lambda: missing):
        status, text = await get(path, "/readyz")
        assert (status, text) == (503, "not ready: the first list of pods; the ZDS socket\n")
        assert await get(path, "/healthz") == (200, "alive\n")
        missing.clear()
        assert await get(path, "/readyz") == (200, "ready\n")


async def test_only_the_agents_user_may_ask(tmp_path: Path) -> None:
    """The socket is the owner's alone from its first moment, and goes with the agent."""
    path = tmp_path / "admin.sock"
    async with serve_admin(str(path), workloads=list, missing=list):
        status = path.stat()
        assert stat.S_ISSOCK(status.st_mode)
        assert stat.S_IMODE(status.st_mode) == 0o600
    assert not path.exists()


async def test_a_stale_socket_is_replaced_and_nothing_else_is(tmp_path: Path) -> None:
    """What a killed agent left is in nobody's way; a file that is no socket is not touched."""
    path = tmp_path / "admin.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    async with serve_admin(str(path), workloads=list, missing=list):
        assert (await get(str(path), "/readyz"))[0] == 200
    path.write_text("precious")
    with pytest.raises(FileExistsError, match="not a socket"):
        async with serve_admin(str(path), workloads=list, missing=list):
            pass
    assert path.read_text() == "precious"


async def test_an_agent_leaves_its_successors_socket_alone(tmp_path: Path) -> None:
    """L24: the old agent's end does not cut off the new one, which has replaced its socket."""
    path = str(tmp_path / "admin.sock")
    async with serve_admin(path, workloads=list, missing=lambda: ["old"]):
        new = serve_admin(path, workloads=list, missing=list)
        await new.__aenter__()
    assert await get(path, "/readyz") == (200, "ready\n")
    await new.__aexit__(None, None, None)


async def test_the_end_does_not_wait_for_an_idle_client(tmp_path: Path) -> None:
    """A client that asked once and stays connected holds up nobody."""
    path = str(tmp_path / "admin.sock")
    async with asyncio.timeout(PATIENCE):
        async with serve_admin(path, workloads=list, missing=list):
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(b"GET /readyz HTTP/1.1\r\nHost: agent\r\n\r\n")
            await reader.readline()
        writer.close()
        await writer.wait_closed()


async def test_questions_about_one_pod(tmp_path: Path) -> None:
    """A UID of any characters arrives as it is; a pod that has gone meanwhile has no answer."""

    async def echo(uid: str) -> object:
        return None if uid == "gone" else [uid]

    path = str(tmp_path / "admin.sock")
    async with serve_admin(path, workloads=list, missing=list, answers={"echo": echo}):
        assert await asyncio.to_thread(ask, path, "echo") == [""]
        for uid in ("u1", "a/b?c=d&e#f %", "ü"):
            assert await asyncio.to_thread(ask, path, "echo", uid=uid) == [uid]
        assert await asyncio.to_thread(ask, path, "echo", uid="gone") is None


async def test_an_older_agent_is_named_as_that(tmp_path: Path) -> None:
    """A question that the agent does not know is no agent that is away."""
    path = str(tmp_path / "admin.sock")
    async with serve_admin(path, workloads=list, missing=list):
        with pytest.raises(NoAgentError, match=f"agent at {path} is older .* 'history'.* image"):
            await asyncio.to_thread(ask, path, "history")


def test_an_agent_that_does_not_answer(tmp_path: Path) -> None:
    """One that is stuck is told from one that does not run."""
    path = str(tmp_path / "admin.sock")
    with socket.socket(socket.AF_UNIX) as stuck:
        stuck.bind(path)
        stuck.listen()
        with pytest.raises(NoAgentError, match=r"has not answered for 0\.1 s"):
            ask(path, "history", seconds=0.1)


def test_without_an_agent_the_reason_is_named(tmp_path: Path) -> None:
    """Nobody there is an answer in words, with the setting that may be wrong."""
    path = str(tmp_path / "admin.sock")
    with pytest.raises(NoAgentError, match=r"no agent answers at .*CNI_AGENT_RUN_DIR"):
        fetch_workloads(path)
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(path)
    with pytest.raises(NoAgentError, match="no agent answers"):
        fetch_workloads(path)


async def test_an_agent_that_fails_is_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    """L16: an error is an error, never "no pods"."""

    def broken() -> list[dict[str, object]]:
        raise RuntimeError

    path = str(tmp_path / "admin.sock")
    async with serve_admin(path, workloads=broken, missing=list):
        with pytest.raises(NoAgentError, match=f"answered {http.client.INTERNAL_SERVER_ERROR}"):
            await asyncio.to_thread(fetch_workloads, path)


async def test_no_descriptor_stays_open(tmp_path: Path) -> None:
    """Serving and asking give back all that they opened."""
    path = str(tmp_path / "admin.sock")
    before = set(os.listdir("/proc/self/fd"))
    async with serve_admin(path, workloads=list, missing=list):
        await asyncio.to_thread(fetch_workloads, path)
    assert set(os.listdir("/proc/self/fd")) == before


async def test_kubelet_is_told_over_tcp_and_learns_nothing_else(free_port: int) -> None:
    """Any pod of the node can connect there: it has the probes, and no workloads."""
    missing = ["the first list of pods"]
    async with (
        serve_health(f"127.0.0.1:{free_port}", missing=lambda: missing),
        aiohttp.ClientSession(f"http://127.0.0.1:{free_port}") as session,
    ):
        for path, status in (("/readyz", 503), ("/healthz", 200), ("/workloads", 404)):
            async with session.get(path) as response:
                assert response.status == status


async def test_an_address_that_is_taken_is_named(free_port: int) -> None:
    """Whoever runs two agents on a node is told which setting to change."""
    async with serve_health(f"127.0.0.1:{free_port}", missing=list):
        with pytest.raises(OSError, match=f"127.0.0.1:{free_port}.*READINESS_ADDRESS"):
            async with serve_health(f"127.0.0.1:{free_port}", missing=list):
                pass


@pytest.fixture
def free_port() -> int:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
