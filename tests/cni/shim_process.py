"""The CNI binary as a container runtime runs it, and something in the agent's place."""

import asyncio
import contextlib
import json
import shutil
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

from nodeagent.cni.shim.build import DIALECT, SOURCE, WARNINGS, sources

ORDINARY = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=cart-5d9f"
EXCLUDED = "IgnoreUnknown=1;K8S_POD_NAMESPACE=kube-system;K8S_POD_NAME=coredns-x2x4z"
AGENT = "IgnoreUnknown=1;K8S_POD_NAMESPACE=istio-system;K8S_POD_NAME=nodeagent-x2x4z"
ZTUNNEL = "IgnoreUnknown=1;K8S_POD_NAMESPACE=istio-system;K8S_POD_NAME=ztunnel-x2x4z"
PREVIOUS = b'{ "cniVersion":"1.0.0", "z": 1e2,\n\t"ips":[{"address":"10.0.0.7/24"}],"a":"\\u00e9" }'

HOUR = 3600.0
"""Seconds; no test comes to its end."""

LET_THROUGH = {
    "namespaces": ["kube-system"],
    "agent": {"namespace": "istio-system", "podPrefix": "nodeagent-"},
    "pods": [{"namespace": "istio-system", "podPrefix": "ztunnel-"}],
}


@dataclass(frozen=True, slots=True)
class Finished:
    """How the binary ended."""

    status: int
    stdout: bytes

    @property
    def error(self) -> dict[str, Any]:
        assert self.status == 1, self
        decoded: dict[str, Any] = json.loads(self.stdout)
        assert decoded.keys() >= {"cniVersion", "code", "msg"}
        return decoded


def configuration(socket: Path | str, previous: bytes | None = PREVIOUS) -> bytes:
    """Make what the runtime writes to the plugin's standard input."""
    entry = {
        "cniVersion": "1.0.0",
        "name": "net",
        "type": "nodeagent",
        "socket": str(socket),
        "letThrough": LET_THROUGH,
    }
    tail = b"" if previous is None else b',"prevResult": ' + previous
    return json.dumps(entry).encode()[:-1] + tail + b"}"


async def run(
    binary: Path, command: str, stdin: bytes, *, arguments: str = ORDINARY, **more: str
) -> Finished:
    """Run the binary to its end, with nothing in its environment but CNI's variables."""
    environment = {"CNI_COMMAND": command, "CNI_ARGS": arguments, **more}
    process = await start(binary, environment)
    stdout, stderr = await process.communicate(stdin)
    assert stderr == b"", stderr.decode()
    assert process.returncode is not None
    return Finished(process.returncode, stdout)


async def start(
    binary: Path, environment: Mapping[str, str], stdout: int = asyncio.subprocess.PIPE
) -> asyncio.subprocess.Process:
    """Start the binary with pipes for its streams; `stdout` may be a descriptor instead."""
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(
        binary, stdin=pipe, stdout=stdout, stderr=pipe, env=environment
    )


def build_checked(output: Path, *, program: tuple[Path | str, ...], flags: tuple[str, ...]) -> Path:
    """Compile some of the binary's sources under the sanitizers."""
    gcc = shutil.which("gcc")
    assert gcc is not None, "gcc is missing: apt-get install gcc libc6-dev"
    checks = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g", "-O1")
    command = (gcc, *DIALECT, *WARNINGS, *checks, *flags, *program, "-I", SOURCE, "-o", output)
    subprocess.run(command, cwd=SOURCE, check=True)
    return output


def build_shim(
    output: Path, *, reading: float = HOUR, answer: float = HOUR, restart: float = HOUR
) -> Path:
    """Compile the whole binary under the sanitizers, with deadlines of so many seconds.

    `reading`: for standard input; `answer`: for the agent's; `restart`: for an agent that is away.
    """
    deadlines = {
        "INPUT_DEADLINE_MS": reading,
        "ANSWER_DEADLINE_MS": answer,
        "RESTART_PATIENCE_MS": restart,
    }
    flags = tuple(f"-D{name}={seconds * 1000:.0f}" for name, seconds in deadlines.items())
    return build_checked(output, program=tuple(sources()), flags=flags)


@dataclass
class ModelAgent:
    """A plugin server that records each request and answers as it is told."""

    socket: Path
    status: int = 200
    body: bytes = PREVIOUS
    requests: list[web.Request] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)

    async def answer(self, request: web.Request) -> web.Response:
        self.requests.append(request)
        self.bodies.append(await request.read())
        return web.Response(status=self.status, body=self.body, content_type="application/json")

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        application = web.Application(client_max_size=2 * 1024 * 1024)
        application.router.add_route("*", "/{path:.*}", self.answer)
        runner = web.AppRunner(application)
        await runner.setup()
        try:
            await web.UnixSite(runner, str(self.socket)).start()
            yield
        finally:
            await runner.cleanup()


Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def stranger(socket: Path, talk: Talk) -> AsyncIterator[None]:
    """Listen at the agent's socket with something that does not behave like it."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(ConnectionError):
            await talk(reader, writer)

    server = await asyncio.start_unix_server(handle, socket)
    async with server:
        yield
