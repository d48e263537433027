"""A containerd of the tests' own, with runc and the real CNI plugins."""

import asyncio
import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.eventually import PATIENCE, eventually
from tests.runtime import image
from tests.runtime.sandboxes import Sandboxes

PLUGINS = Path("/usr/lib/cni")
_CNI_CACHE = Path("/var/lib/cni")
"""Where libcni notes its sandboxes; containerd has no setting for it."""
"""Where Debian's containernetworking-plugins are."""
NETWORK = "10-pods.conflist"

_PROGRAMS = ("containerd", "ctr", "runc", "gcc", "ip")
_CGROUPS = Path("/sys/fs/cgroup")
_numbers = itertools.count(1)

_CONFIG = """
version = 2
root = "{directory}/root"
state = "{directory}/state"
disabled_plugins = [
  "io.containerd.internal.v1.opt",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.overlayfs",
]
[grpc]
address = "{endpoint}"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{image}"
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{bin_dir}"
conf_dir = "{net_dir}"
max_conf_num = {networks}
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "native"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = false
"""


def missing() -> str | None:
    """What keeps a container runtime from running here, for people; None: nothing."""
    if not _is_true_root():
        return "root itself is needed, not that of a user namespace"
    lacking = [name for name in _PROGRAMS if shutil.which(name) is None]
    if not (PLUGINS / "bridge").exists():
        lacking.append("containernetworking-plugins")
    return f"missing: {', '.join(lacking)}" if lacking else None


class Containerd(Sandboxes):
    """The process, its directories, and the pods that it runs.

    What is in `net_dir` and `bin_dir` can be changed at any time: containerd reads
    the first configuration in `net_dir` again by itself.
    """

    def __init__(self, directory: Path, archive: Path, *, networks: int = 1) -> None:
        """`directory` is to be short: a socket's path has 107 bytes at the most.

        `networks`: how many configurations it loads for each pod; 0: all.
        """
        self.net_dir = directory / "net.d"
        self.bin_dir = directory / "bin"
        self.log = directory / "containerd.log"
        self._directory = directory
        self._archive = archive
        self._bridge = f"pods{next(_numbers)}"
        self._process: asyncio.subprocess.Process | None = None
        logs = directory / "logs"
        for made in (self.net_dir, self.bin_dir, logs):
            made.mkdir()
        for plugin in PLUGINS.iterdir():
            (self.bin_dir / plugin.name).symlink_to(plugin)
        # Several runs of the tests share the machine's cgroups.
        self._cgroup = f"nodeagent-tests-{directory.name}"
        super().__init__(str(directory / "containerd.sock"), logs, f"/{self._cgroup}")
        (self.net_dir / NETWORK).write_text(json.dumps(self.network()))
        self._config = directory / "config.toml"
        self.reconfigure(networks=networks)

    def reconfigure(self, *, networks: int) -> None:
        """Write its configuration anew, for its next start."""
        self._config.write_text(
            _CONFIG.format(
                directory=self._directory,
                endpoint=self.endpoint,
                image=image.NAME,
                bin_dir=self.bin_dir,
                net_dir=self.net_dir,
                networks=networks,
            )
        )

    def network(self, number: int = 77) -> dict[str, Any]:
        """The chain that stands in `net_dir` at first: a bridge, with IPv4 and IPv6.

        With another `number`, another network on the same bridge.
        """
        ranges = [[{"subnet": f"10.{number}.0.0/16"}], [{"subnet": f"fd{number}::/64"}]]
        ipam = {"type": "host-local", "dataDir": str(self._directory / "ipam"), "ranges": ranges}
        first = number == 77  # the bridge has one gateway's address
        bridge = {"type": "bridge", "bridge": self._bridge, "isGateway": first, "ipam": ipam}
        name = "pods" if first else f"pods-{number}"
        return {"cniVersion": "1.0.0", "name": name, "plugins": [bridge]}

    async def start(self) -> None:
        """Start it; returns when sandboxes can be made."""
        _cover_cni_cache()
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                "containerd", "--config", str(self._config), stdout=log, stderr=log
            )
        try:
            async with asyncio.timeout(PATIENCE):
                while not await self.network_ready():
                    await self._pause()
                if not await self.has_image():
                    await self.import_image(self._archive)
                    while not await self.has_image():
                        await self._pause()
        except TimeoutError:
            raise AssertionError(f"containerd did not start:\n{self.log.read_text()}") from None

    async def stop(self) -> None:
        """End it in order; the pods run on."""
        await self._end("terminate")

    async def kill(self) -> None:
        """End it by SIGKILL; the pods run on."""
        await self._end("kill")

    async def restart(self) -> None:
        """Stop and start; the pods run on."""
        await self.stop()
        await self.start()

    async def cgroups(self, sandbox: str) -> list[Path]:
        """The directories of the sandbox's process, one in each hierarchy."""
        lines = Path(f"/proc/{await self.pid(sandbox)}/cgroup").read_text().splitlines()
        paths = {line.split(":", 2)[2].removeprefix("/") for line in lines}
        roots = [_CGROUPS, *_CGROUPS.iterdir()]
        found = [root / path for root in roots for path in paths if path]
        return [path for path in found if path.is_dir()]

    async def import_image(self, archive: Path) -> None:
        """Take the image in an OCI archive, under the name that stands in it."""
        command = ("ctr", "--address", self.endpoint, "--namespace", "k8s.io", "images", "import")
        importing = await asyncio.create_subprocess_exec(
            *command, *("--snapshotter", "native", str(archive)), stdout=asyncio.subprocess.DEVNULL
        )
        assert await importing.wait() == 0

    async def __aenter__(self) -> Self:
        await _run("ip", "link", "set", "lo", "up")
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if self._process is None:
                await self.start()
            await self.clear()
        finally:
            await self.stop()
        if os.path.exists(f"/proc/sys/net/ipv4/conf/{self._bridge}"):
            await _run("ip", "link", "delete", self._bridge)
        for found in (_CGROUPS / self._cgroup, *_CGROUPS.glob(f"*/{self._cgroup}")):
            for path, _, _ in os.walk(found, topdown=False):
                await _remove_cgroup(Path(path))
        for line in Path("/proc/self/mounts").read_text().splitlines():
            if (mounted := line.split()[1]).startswith(f"{self._directory}/"):
                await _run("umount", "--lazy", mounted)

    async def _end(self, how: str) -> None:
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                getattr(process, how)()
            await process.wait()

    async def _pause(self) -> None:
        process = self._process
        assert process is not None
        assert process.returncode is None, self.log.read_text()
        await asyncio.sleep(0.01)


async def _run(*words: str) -> None:
    program = await asyncio.create_subprocess_exec(*words)
    assert await program.wait() == 0


async def _remove_cgroup(path: Path) -> None:
    # A sandbox whose CNI chain fails to take its network down cannot be removed.
    for pid in (path / "cgroup.procs").read_text().split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    await eventually(lambda: not (path / "cgroup.procs").read_text())
    path.rmdir()


def _is_true_root() -> bool:
    return Path("/proc/self/uid_map").read_text().split() == ["0", "0", str(2**32 - 1)]


def _cover_cni_cache() -> None:
    """Keep what is noted there off the machine, in the mount namespace that the run has."""
    _CNI_CACHE.mkdir(exist_ok=True)
    if not _CNI_CACHE.is_mount():
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", _CNI_CACHE], check=True)
