"""The agent and the stub as real processes."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from nodeagent.config import SETTINGS
from tests.eventually import PATIENCE, eventually

Line = Mapping[str, Any]
"""One line of a program's log."""

"""Seconds for a program to start or to end; a busy machine needs one."""


class ProgramError(OSError):
    """A program does not do what it was started for; the text says what it said."""


class Log:
    """A file with one JSON object a line, to which programs append."""

    def __init__(self, path: str) -> None:
        self.path = path

    def lines(self) -> list[Line]:
        """What was said so far."""
        with contextlib.suppress(FileNotFoundError), open(self.path, encoding="utf-8") as file:
            whole = [line for line in file if line.endswith("\n")]
            return [json.loads(line) for line in whole if line.startswith("{")]
        return []

    def last(self) -> str:
        """The last line as it stands, for an error's text."""
        with open(self.path, encoding="utf-8", errors="replace") as file:
            return ([line for line in file if line.strip()] or ["nothing was said"])[-1].strip()


class Program:
    """One running ``python -m MODULE``."""

    def __init__(self, name: str, process: Process, log: Log) -> None:
        self.name = name
        self._process = process
        self._log = log

    async def ready(self, socket: str, url: str) -> None:
        """Wait until GET `url` on the Unix socket is answered with 200. Raises `ProgramError`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                while not await _answers_200(socket, url):
                    if self._process.returncode is not None:
                        break
                    await asyncio.sleep(0.005)
                else:
                    return
        raise ProgramError(f"{self.name} does not get ready; its last line: {self._log.last()}")

    async def end(self, number: signal.Signals) -> int:
        """Send a signal and return the exit status, negative where the signal ended it."""
        if self._process.returncode is None:
            self._process.send_signal(number)
        try:
            async with asyncio.timeout(PATIENCE):
                return await self._process.wait()
        except TimeoutError:
            self._process.kill()
            return await self._process.wait()


@contextlib.asynccontextmanager
async def started(name: str, module: str, *arguments: str, log: Log) -> AsyncIterator[Program]:
    """Run ``python -m MODULE`` until the end of the block at the latest."""
    with open(log.path, "ab") as file:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            module,
            *arguments,
            stdin=DEVNULL,
            stdout=DEVNULL,
            stderr=file,
            env=_environment(),
        )
    program = Program(name, process, log)
    try:
        yield program
    finally:
        await program.end(signal.SIGTERM)


async def answer_of(*arguments: str) -> str:
    """Return what ``python -m nodeagent ARGUMENTS`` prints. Raises `ProgramError`."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "nodeagent",
        *arguments,
        stdin=DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=_environment(),
    )
    output, _ = await process.communicate()
    if process.returncode != 0:
        raise ProgramError(f"nodeagent {arguments[0]}: {output.decode().strip()}")
    return output.decode()


async def settled(condition: Callable[[], bool], seconds: float = PATIENCE) -> bool:
    """Wait until `condition` holds; whether it did in time."""
    try:
        await eventually(condition, seconds)
    except TimeoutError:
        return False
    return True


def _environment() -> dict[str, str]:
    # The caller's own settings of the agent are not the demo's.
    settings = {setting.variable for setting in SETTINGS}
    return {name: text for name, text in os.environ.items() if name not in settings}


async def _answers_200(socket: str, url: str) -> bool:
    try:
        reader, writer = await asyncio.open_unix_connection(socket)
    except OSError:
        return False
    try:
        writer.write(f"GET {url} HTTP/1.0\r\n\r\n".encode())
        return b" 200 " in await reader.readline()
    except ConnectionError:
        return False
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
