"""A node's CNI directories, and an installer that runs on them."""

import asyncio
import contextlib
import json
import os
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from nodeagent.cni.install.installer import Installer
from nodeagent.cni.install.loading import Loading
from nodeagent.cni.install.plan import Placement
from nodeagent.cni.install.repair import Repairer
from tests.eventually import PATIENCE, eventually

CORPUS = Path(__file__).parent / "corpus"
OWN = "02-istio-cni.conflist"
"""Our own file."""
FLANNEL = "10-flannel.conflist"
"""A primary configuration of the corpus: flannel and portmap."""
ENTRY = {
    "type": "nodeagent",
    "socket": "/var/run/istio-cni/pluginevent.sock",
    "letThrough": {"namespaces": ["kube-system"]},
}


CONTAINERD = Loading(most=1, source="containerd 1.7.20")
CRIO = Loading(most=1, tolerant=True, source="cri-o 1.31.0")


class Node:
    """The directories of a node."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.net, self.bin = root / "net.d", root / "bin"
        self.source = root / "nodeagent-cni-amd64"
        self.net.mkdir()
        self.bin.mkdir()
        (root / "var/lib/cni").mkdir(parents=True)
        self.source.write_bytes(b"\x7fELF-one")
        self.loading = CRIO

    async def told(self) -> Loading:
        """What the container runtime answers."""
        return self.loading

    def has(self, name: str) -> Path:
        """Give it a configuration of the corpus, as its owner writes it; return where."""
        path = self.net / name
        put(path, (CORPUS / name).read_bytes())
        return path

    def files(self) -> dict[str, bytes]:
        """What is in the configuration directory."""
        found = {}
        for path in self.net.iterdir():
            with contextlib.suppress(FileNotFoundError):
                found[path.name] = path.read_bytes()
        return found

    def types(self, name: str) -> list[str]:
        """Types of the plugins in a list; none where it is not there."""
        try:
            return [
                plugin["type"] for plugin in json.loads((self.net / name).read_bytes())["plugins"]
            ]
        except FileNotFoundError:
            return []

    async def chained(self, name: str = OWN) -> None:
        """Wait until the list ends with our entry."""
        await eventually(lambda: self.types(name)[-1:] == ["nodeagent"])

    def installer(self, **settings: Any) -> Installer:
        """Make an installer for it; `settings` are its parts', or those of its placement."""
        names = {"conf_name", "chained", "own_file"} & settings.keys()
        place = {"own_file": OWN, **{name: settings.pop(name) for name in names}}
        loading = settings.pop("loading", self.told)
        repairer = Repairer(
            **{
                "net_dir": str(self.net),
                "bin_dir": str(self.bin),
                "entry": ENTRY,
                "binary_source": str(self.source),
                **settings,
            }
        )
        return Installer(repairer, placement=Placement(**place), loading=loading)

    async def settled(self, *installers: Installer) -> None:
        """Wait until each installer has gone over all that has happened so far."""
        # The pass that runs may have begun too early; the next one has not.
        for one, before in {one: one.passes for one in installers}.items():
            for more in (1, 2):
                news = self.net / "news"
                news.touch()
                news.unlink()
                await eventually(partial(lambda o, n: o.passes >= n, one, before + more))

    @contextlib.asynccontextmanager
    async def installing(self, **settings: Any) -> AsyncIterator[Installer]:
        """Run an installer; at the end it is cancelled, as by SIGTERM."""
        installer = self.installer(**settings)
        task = asyncio.create_task(installer.run(), name="installer")
        try:
            yield installer
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def installed(installer: Installer) -> None:
    """Wait until it has installed."""
    async with asyncio.timeout(PATIENCE):
        await installer.installed.wait()


def put(path: Path, data: bytes) -> None:
    """Write a file as careful owners do."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_bytes(data)
    os.rename(temporary, path)


def said(entries: list[Any], text: str) -> Callable[[], bool]:
    """Whether something with `text` in it was logged."""
    return lambda: any(text in " ".join(map(str, entry.values())) for entry in entries)


@contextlib.contextmanager
def mounted(path: Path, options: str) -> Iterator[None]:
    """A small file system of its own, in the run's own mount namespace."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", path], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", path], check=True)


def remount(path: Path, options: str) -> None:
    """Change what may be done in it."""
    subprocess.run(["mount", "-o", f"remount,{options}", path], check=True)
