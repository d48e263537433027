"""The agent and the stub as processes, and what they take of the machine."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from nodeagent.config import SETTINGS
from tests.eventually import PATIENCE, listens
from tests.tools.bench.node import Node

_REST = 0.1
"""Seconds, ten ticks of a process's clock, in which one that has nothing to do does nothing."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a process holds."""

    resident: int
    """Bytes (VmRSS)."""
    descriptors: int

    @property
    def mebibytes(self) -> float:
        return self.resident / (1 << 20)

    def __str__(self) -> str:
        return f"{self.mebibytes:.1f} MiB, {self.descriptors} descriptors"


class Program:
    """Runs ``python -m MODULE`` until the end of its ``with``; its log is in `log`."""

    def __init__(self, log: str, module: str, *arguments: str) -> None:
        self._log = log
        # The caller's own settings are not the bench's.
        variables = {setting.variable for setting in SETTINGS}
        with open(log, "wb") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=file,
                env={name: text for name, text in os.environ.items() if name not in variables},
            )

    def until(self, condition: Callable[[], bool], what: str, *, every: float = 0.002) -> None:
        """Wait for `condition`. Raises ``RuntimeError`` with the log's end if it stays away."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"no {what}; the log ends:\n{self.last_words()}")
            time.sleep(every)

    def last_words(self) -> str:
        """The end of its log."""
        with open(self._log, encoding="utf-8", errors="replace") as file:
            return "".join(file.readlines()[-10:])

    def settled(self) -> Footprint:
        """What it holds once it has come to rest: every new pod is looked at once more."""
        deadline = time.monotonic() + PATIENCE
        used = None
        while used != self.processor_time():
            if time.monotonic() > deadline:
                raise RuntimeError(f"does not come to rest; the log ends:\n{self.last_words()}")
            used = self.processor_time()
            time.sleep(_REST)
        return self._footprint()

    def processor_time(self) -> int:
        """Ticks that it has run for."""
        with open(f"/proc/{self._process.pid}/stat", encoding="utf-8") as stat:
            fields = stat.read().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    def share(self, seconds: float) -> float:
        """What it takes of a core's time, watched for so many seconds from now."""
        before, started = self.processor_time(), time.perf_counter()
        time.sleep(seconds)
        ticks = self.processor_time() - before
        return ticks / os.sysconf("SC_CLK_TCK") / (time.perf_counter() - started)

    def _footprint(self) -> Footprint:
        directory = f"/proc/{self._process.pid}"
        with open(f"{directory}/status", encoding="ascii") as status:
            (resident,) = (int(line.split()[1]) for line in status if line.startswith("VmRSS"))
        return Footprint(resident * 1024, len(os.listdir(f"{directory}/fd")))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Agent(Program):
    """The agent, for the pods of one `Node`."""

    def __init__(self, node: Node, *source: str) -> None:
        """`source`: the flags that say where pods come from; none: the node's manifests."""
        run = os.path.join(node.directory, "run")
        self.zds = os.path.join(run, "ztunnel.sock")
        self.plugin = os.path.join(run, "pluginevent.sock")
        self.admin = os.path.join(run, "admin.sock")
        super().__init__(
            os.path.join(node.directory, "agent.log"),
            "nodeagent",
            "run",
            *(source or ("--pod-manifests", node.manifests)),
            *("--ztunnel-uds-address", self.zds),
            *("--cni-agent-run-dir", run),
            *("--log-format", "json"),
        )
        try:
            self.until(lambda: listens(self.zds), "ZDS socket")
        except BaseException:
            self.__exit__(None, None, None)
            raise
