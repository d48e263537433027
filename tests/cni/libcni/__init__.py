"""Plugins driven by the CNI project's own library, through a small Go program."""

import asyncio
import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_SOURCE = Path(__file__).parent
_ALL = "NODEAGENT_TESTS_ALL"

Configuration = Mapping[str, Any]
"""A network configuration list, decoded."""


class CniError(Exception):
    """A plugin's error, as libcni hands it to the runtime."""

    def __init__(self, error: Mapping[str, Any]) -> None:
        super().__init__(error)
        self.code: int = error.get("code", 0)
        self.message: str = error["msg"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """A container's interface in a network; `arguments` become CNI_ARGS."""

    container_id: str
    netns: str
    arguments: Mapping[str, str] = field(default_factory=dict)
    interface: str = "eth0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Libcni:
    """Each call is one operation on a whole list, with plugins from `path`.

    All raise ``CniError``. Results of `add` are cached for the others, as a runtime
    has them cached.
    """

    driver: Path
    cache: Path
    path: tuple[Path, ...]

    async def add(self, configuration: Configuration, attachment: Attachment) -> dict[str, Any]:
        """Run ADD of each plugin in turn; the last one's result."""
        result: dict[str, Any] = await self._do("add", configuration, _sandbox(attachment))
        return result

    async def check(self, configuration: Configuration, attachment: Attachment) -> None:
        """Run CHECK of each plugin in turn; CNI has it from 0.4.0 on."""
        await self._do("check", configuration, _sandbox(attachment))

    async def delete(self, configuration: Configuration, attachment: Attachment) -> None:
        """Run DEL of each plugin, the last one first."""
        await self._do("del", configuration, _sandbox(attachment))

    async def collect(self, configuration: Configuration, *valid: Attachment) -> None:
        """Run GC, which is to keep what is `valid`; CNI has it from 1.1.0 on."""
        attachments = [{"containerID": one.container_id, "ifname": one.interface} for one in valid]
        await self._do("gc", configuration, {"gcArgs": {"attachments": attachments}})

    async def collect_without_list(self, configuration: Configuration, *, null: bool) -> None:
        """Run GC with a nil slice as the list (ocicni without sandboxes), or without arguments."""
        arguments = {"attachments": None} if null else None
        await self._do("gc", configuration, {"gcArgs": arguments})

    async def status(self, configuration: Configuration) -> None:
        """Run STATUS of each plugin; CNI has it from 1.1.0 on."""
        await self._do("status", configuration, {})

    async def validate(self, configuration: Configuration) -> None:
        """Ask each plugin by VERSION whether it speaks the list's version."""
        await self._do("validate", configuration, {})

    async def _do(
        self, operation: str, configuration: Configuration, more: Mapping[str, Any]
    ) -> Any:
        request = {
            "operation": operation,
            "list": configuration,
            "path": [str(directory) for directory in self.path],
            "cache": str(self.cache),
            **more,
        }
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            self.driver, stdin=pipe, stdout=pipe, stderr=pipe
        )
        stdout, stderr = await process.communicate(json.dumps(request).encode())
        assert process.returncode == 0, stderr.decode()
        answer = json.loads(stdout)
        if "error" in answer:
            raise CniError(answer["error"])
        return answer.get("result")


def missing() -> str | None:
    """Say in a line what this machine lacks; nothing where the library can be driven."""
    return left_out("with the CNI project's library", "Go") if shutil.which("go") is None else None


def left_out(tests: str, lack: str) -> str:
    """Say which tests are left out for what. Raises where none may be."""
    line = f"tests/cni: those {tests} are left out: there is no {lack}"
    if os.environ.get(_ALL) == "1":
        raise RuntimeError(f"{line}, with {_ALL}=1")
    return line


def build(output: Path) -> Path:
    """Build the driver. Raises ``CalledProcessError``; the module has to be there already."""
    environment = {**os.environ, "CGO_ENABLED": "0", "GOPROXY": "off", "GOFLAGS": "-mod=readonly"}
    command = ("go", "build", "-trimpath", "-buildvcs=false", "-o", output, ".")
    subprocess.run(command, cwd=_SOURCE, env=environment, check=True)
    return output


def _sandbox(attachment: Attachment) -> dict[str, Any]:
    return {
        "containerId": attachment.container_id,
        "netns": attachment.netns,
        "interface": attachment.interface,
        "args": list(attachment.arguments.items()),
    }
