"""The agent as a process of its own, quick to start, and able to be killed between two steps.

A fork server that has the agent imported starts one in some ten milliseconds; the
command line is tested elsewhere.
"""

import asyncio
import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nodeagent import config, log
from nodeagent.admin.client import NoAgentError, Workload, fetch_workloads
from nodeagent.mesh.pod import NETNS_PATH
from tests.capabilities import Grant, limit_to
from tests.eventually import eventually
from tests.lab.pod import Pod

_SPAWN = multiprocessing.get_context("forkserver")
_SPAWN.set_forkserver_preload(["nodeagent.agent.run", "tests.agent.steps", "ztunnel_stub.stub"])

AMBIENT = {"istio.io/dataplane-mode": "ambient"}


class Node:
    """A folder of manifests, the sockets, and the agent that works with them."""

    def __init__(self, directory: Path, **settings: str) -> None:
        self.manifests = directory / "pods"
        self.manifests.mkdir()
        self.zds = str(directory / "zds.sock")
        self.flags = {
            "pod_manifests": str(self.manifests),
            "ztunnel_uds_address": self.zds,
            "cni_agent_run_dir": str(directory / "run"),
            # Longer than any wait of the tests: what comes sooner, the agent has heard.
            "verify_interval": "3600",
            **settings,
        }
        self.settings = config.load(self.flags, {})
        self.log = directory / "agent.log"
        self.grant: Grant | None = None
        """The capabilities that the agent is started with; None: those of the tests (L43)."""
        self.process: Any = None

    def write(
        self,
        pod: Pod,
        *,
        labels: dict[str, str] | None = None,
        annotations: dict[str, str] | None = None,
        **changes: object,
    ) -> None:
        """Put the manifest of `pod` into the folder, in one step."""
        manifest = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": pod.name,
                "namespace": "shop",
                "uid": f"uid-{pod.name}",
                "labels": AMBIENT if labels is None else labels,
                "annotations": {NETNS_PATH: pod.path, **(annotations or {})},
            },
            "status": {"podIPs": [{"ip": str(address)} for address in pod.addresses]},
            **changes,
        }
        draft = self.manifests / f".{pod.name}"
        draft.write_text(json.dumps(manifest))
        draft.rename(self.manifests / f"{pod.name}.json")

    def delete(self, pod: Pod) -> None:
        (self.manifests / f"{pod.name}.json").unlink()

    def start(self, *, die_after: int = 0) -> None:
        """Start the agent; with `die_after` it kills itself after that many steps."""
        self.process = _SPAWN.Process(
            target=_run, args=(self.flags, die_after, str(self.log), self.grant), daemon=True
        )
        self.process.start()

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.process.pid, number)

    async def ended(self) -> int:
        """Wait for the process; its exit code as `multiprocessing` has it."""
        await eventually(lambda: not self.process.is_alive())
        self.process.join()
        code: int = self.process.exitcode
        self.process.close()
        self.process = None
        return code

    async def stop(self) -> int:
        self.signal(signal.SIGTERM)
        return await self.ended()

    async def kill(self) -> None:
        self.signal(signal.SIGKILL)
        await self.ended()

    def row(self, pod: Pod) -> Workload | None:
        """What the running agent says of `pod`, if it answers and knows it."""
        try:
            rows = fetch_workloads(self.settings.admin_socket)
        except NoAgentError:
            return None
        return next((row for row in rows if row["name"] == pod.name), None)

    async def until(self, pod: Pod, condition: Callable[[Workload], bool]) -> Workload:
        """Wait until the agent says of `pod` what `condition` asks for."""
        seen: list[Workload | None] = []

        def look() -> bool:
            seen.append(self.row(pod))
            return seen[-1] is not None and condition(seen[-1])

        try:
            await eventually(look)
        except TimeoutError:
            raise AssertionError(f"{pod.name}: {seen[-1]}\n{self.log.read_text()}") from None
        assert seen[-1] is not None
        return seen[-1]

    async def until_state(self, pod: Pod, state: str) -> Workload:
        # The model of a ztunnel accepts pods and opens no listeners in them.
        states = {state, "unserved"} if state == "enrolled" else {state}
        return await self.until(pod, lambda row: row["state"] in states)


class Stub:
    """A `ztunnel_stub` as a process of its own."""

    def __init__(self, node: Node) -> None:
        self._log = str(node.log) + ".stub"
        self._process: Any = _SPAWN.Process(
            target=_run_stub, args=(node.zds, self._log), daemon=True
        )
        self._process.start()

    async def stop(self) -> None:
        os.kill(self._process.pid, signal.SIGTERM)
        await eventually(lambda: not self._process.is_alive())
        self._process.join()
        self._process.close()

    def connections(self, direction: str) -> int:
        """How many have ended that went this way."""
        with open(self._log) as lines:
            ended = [json.loads(line) for line in lines if "connection ended" in line]
        return sum(line["direction"] == direction for line in ended)


def _run_stub(zds: str, log_path: str) -> None:
    from ztunnel_stub import settings, stub  # noqa: PLC0415

    _log_to(log_path)
    options = settings.Settings(
        inpod_uds=zds, admin_address="", readiness_address="", drain_timeout=0.5
    )
    asyncio.run(stub.run(options))


def _log_to(path: str) -> None:
    with open(path, "a", buffering=1) as lines:
        os.dup2(lines.fileno(), 2)
    log.configure("debug", "json")


def _run(flags: dict[str, str], die_after: int, log_path: str, grant: Grant | None) -> None:
    from nodeagent import loop_watch  # noqa: PLC0415 - preloaded in the fork server
    from nodeagent.agent import run as agent  # noqa: PLC0415 - preloaded in the fork server
    from tests.agent import steps  # noqa: PLC0415

    _log_to(log_path)
    if grant is not None:
        limit_to(grant, str(Path(log_path).parent))
    if die_after:
        steps.die_after(die_after)
    raise SystemExit(loop_watch.run(agent.run(config.load(flags, {}))))
