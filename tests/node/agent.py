"""The agent of a node: one process after the other, or two at once during an upgrade."""

import asyncio
import http.client
import os
import signal
import socket
from pathlib import Path
from typing import Any

from nodeagent import config
from tests.agent.processes import Node
from tests.eventually import PATIENCE, eventually


class AgentProcess(Node):
    """Works with the Kubernetes API instead of a folder."""

    def __init__(self, directory: Path, **flags: str) -> None:
        super().__init__(directory, host_prefix="", **flags)
        del self.flags["pod_manifests"]
        self.settings = config.load(self.flags, {})

    def start(self, *, die_after: int = 0) -> None:
        self.flags["monitoring_port"] = "0"
        # Each agent's pod has a network namespace of its own, and its port with it.
        self.flags["readiness_address"] = f"127.0.0.1:{_free_port()}"
        super().start(die_after=die_after)

    async def until_ready(self) -> None:
        """Wait until kubelet would send it traffic."""
        try:
            async with asyncio.timeout(PATIENCE):
                while self.readyz() != http.client.OK:
                    assert self.process.is_alive()
                    await asyncio.sleep(0.01)
        except (TimeoutError, AssertionError):
            raise AssertionError(f"not ready:\n{self.log.read_text()}") from None

    def readyz(self) -> int | None:
        """The status with which it answers kubelet's readiness probe; None: it does not."""
        connection = http.client.HTTPConnection(self.flags["readiness_address"], timeout=PATIENCE)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status
        except OSError:
            return None
        finally:
            connection.close()

    def said(self, text: str) -> bool:
        """Whether it is in the log."""
        return self.log.exists() and text in self.log.read_text()

    async def upgrade(self) -> None:
        """Start the next one while this one stops; returns when the new one is ready."""
        old: Any = self.process
        os.kill(old.pid, signal.SIGTERM)
        self.start()
        await eventually(lambda: not old.is_alive())
        old.join()
        assert old.exitcode == 0
        old.close()
        await self.until_ready()

    async def close(self) -> None:
        if self.process is not None:
            await self.kill()


def _free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port: int = bound.getsockname()[1]
        return port
