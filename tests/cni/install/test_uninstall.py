"""What is there after an uninstallation is what was there before the installation."""

import base64
import json
import os
from collections.abc import Iterable
from pathlib import Path

import pytest

from nodeagent.cni.install import confdir
from nodeagent.cni.install.directory import Directory
from nodeagent.cni.install.uninstall import Report, uninstall
from tests.cni.install.installing import (
    CORPUS,
    FLANNEL,
    OWN,
    Node,
    installed,
    mounted,
    put,
    remount,
)


def uninstalled(node: Node) -> Report:
    """Uninstall where the node's root is."""
    return uninstall(str(node.net), str(node.bin), prefix=str(node.root))


def sandbox(node: Node, name: str, plugins: Iterable[str], cache: str = "results") -> Path:
    """Note a sandbox as libcni does; return where."""
    conf = {"name": "n", "plugins": [{"type": kind} for kind in plugins]}
    config = base64.b64encode(json.dumps(conf).encode()).decode()
    note = {"kind": "cniCacheV1", "containerId": name, "config": config, "networkName": "n"}
    path = node.root / "var/lib/cni" / cache / f"n-{name}-eth0"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(note))
    return path


@pytest.mark.parametrize("name", sorted(path.name for path in CORPUS.iterdir()))
@pytest.mark.parametrize("own_file", ["!0-own.conflist", None])
async def test_as_before(node: Node, name: str, own_file: str | None) -> None:
    """Files of others are what they were, to the byte and the mode; what is ours is gone."""
    node.has(name).chmod(0o640)
    async with node.installing(own_file=own_file) as installer:
        await installed(installer)
    report = uninstalled(node)
    assert node.files() == {name: (CORPUS / name).read_bytes()}
    assert (node.net / name).stat().st_mode & 0o7777 == 0o640
    assert os.listdir(node.bin) == []
    assert report.kept == ""
    assert uninstalled(node) == Report()


async def test_without_the_runtimes_notes(node: Node) -> None:
    """L18: where it cannot be seen which sandboxes still need the binary, the binary stays."""
    (node.root / "var/lib/cni").rmdir()
    node.has(FLANNEL)
    async with node.installing() as installer:
        await installed(installer)
    report = uninstalled(node)
    assert "/var/lib/cni is not mounted" in report.kept
    assert node.files() == {FLANNEL: (CORPUS / FLANNEL).read_bytes()}
    assert os.listdir(node.bin) == ["nodeagent"]


async def test_stand_alone(node: Node) -> None:
    """Not chained, the configuration of our own goes."""
    node.has("00-multus.conf")
    async with node.installing(chained=False) as installer:
        await installed(installer)
    assert uninstalled(node).removed == ("YYY-istio-cni.conf", str(node.bin / "nodeagent"))
    assert set(node.files()) == {"00-multus.conf"}


async def test_behind_links_of_the_host(node: Node) -> None:
    """Where a link of the host's leads to the directories, they are cleared all the same."""
    node.has(FLANNEL)
    (node.root / "current").symlink_to("/")  # the host's own root, which is node.root
    paths = (f"{node.root}/current/net.d", f"{node.root}/current/bin")
    async with node.installing(
        root=str(node.root), net_dir=paths[0], bin_dir=paths[1]
    ) as installer:
        await installed(installer)
    assert OWN in node.files()
    uninstall(*paths, prefix=str(node.root))
    assert (set(node.files()), os.listdir(node.bin)) == ({FLANNEL}, [])


async def test_what_others_changed_meanwhile_stays(node: Node) -> None:
    """After others have worked on the file, only our entry is taken out of it."""
    primary = node.has(FLANNEL)
    async with node.installing(own_file=None) as installer:
        await installed(installer)
    changed = primary.read_bytes().replace(b'"cbr0"', b'"cbr1"')
    put(primary, changed)
    assert uninstalled(node).restored == (FLANNEL,)
    assert primary.read_bytes() == (CORPUS / FLANNEL).read_bytes().replace(b'"cbr0"', b'"cbr1"')


async def test_put_aside_by_cilium(node: Node) -> None:
    """What Cilium has put aside is ours too: it may come back one day."""
    node.has(FLANNEL)
    async with node.installing() as installer:
        await installed(installer)
    (node.net / OWN).rename(node.net / f"{OWN}.cilium_bak")
    put(node.net / "10-x.conflist.cilium_bak", (CORPUS / "10-weave.conflist").read_bytes())
    uninstalled(node)
    assert set(node.files()) == {FLANNEL, "10-x.conflist.cilium_bak"}


@pytest.mark.parametrize("cache", ["results", "cache/results"])
async def test_binary_stays_for_sandboxes_made_with_it(node: Node, cache: str) -> None:
    """L18: the binary stays until the last sandbox made with it is gone, and the report says so."""
    node.has(FLANNEL)
    async with node.installing() as installer:
        await installed(installer)
    ours = sandbox(node, "a", ["bridge", "nodeagent"], cache)
    sandbox(node, "b", ["bridge"], cache)
    (ours.parent / "not-json").write_bytes(b"{")
    report = uninstalled(node)
    assert report.kept == "sandboxes that were made with it still exist: 1"
    assert (node.bin / "nodeagent").exists()
    assert set(node.files()) == {FLANNEL}
    ours.unlink()
    assert uninstalled(node).kept == ""
    assert not (node.bin / "nodeagent").exists()


async def test_binary_stays_while_it_may_be_named(node: Node) -> None:
    """L18: where a configuration cannot be read it may name the binary, which stays."""
    node.has(FLANNEL)
    async with node.installing() as installer:
        await installed(installer)
    (node.net / "90-elsewhere.conf").symlink_to("/etc/passwd")
    assert "90-elsewhere.conf" in uninstalled(node).kept
    assert (node.bin / "nodeagent").exists()


async def test_binary_goes_last(node: Node) -> None:
    """Where the configuration cannot be mended, the error says so and the binary stays."""
    with mounted(node.net, "size=64k"):
        node.has(FLANNEL)
        async with node.installing(own_file=None) as installer:
            await installed(installer)
        remount(node.net, "ro")
        with pytest.raises(OSError, match=f"{FLANNEL} cannot be written: Read-only"):
            uninstalled(node)
    assert (node.bin / "nodeagent").exists()


async def test_owner_writes_meanwhile(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that its owner writes during the uninstallation is read again, not overwritten."""
    primary = node.has(FLANNEL)
    async with node.installing(own_file=None) as installer:
        await installed(installer)
    theirs = [primary.read_bytes().replace(b'"cbr0"', b'"cbr1"')]
    original = confdir.read

    def read(path: str, suffixes: tuple[str, ...]) -> Directory:
        found = original(path, suffixes)
        if theirs:
            put(primary, theirs.pop())
        return found

    monkeypatch.setattr(confdir, "read", read)
    uninstalled(node)
    assert primary.read_bytes() == (CORPUS / FLANNEL).read_bytes().replace(b'"cbr0"', b'"cbr1"')


def test_nothing_was_installed(node: Node) -> None:
    """On a node without us, or without any CNI, there is nothing to do."""
    node.has(FLANNEL)
    assert uninstalled(node) == Report()
    (node.net / FLANNEL).unlink()
    node.net.rmdir()
    node.bin.rmdir()
    assert uninstalled(node) == Report()
