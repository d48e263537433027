"""What a node's disk and neighbors do to the installer: one clear message each, nothing lost."""

import contextlib
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from nodeagent.cni.install import confdir
from nodeagent.cni.install.binary import NoBinaryError, packaged_binary
from tests.cni.install.installing import (
    CORPUS,
    FLANNEL,
    OWN,
    Node,
    installed,
    mounted,
    put,
    remount,
    said,
)
from tests.eventually import eventually


def fill(directory: Path) -> None:
    """Leave no room in its file system."""
    with contextlib.suppress(OSError), (directory / "filler").open("wb", buffering=0) as filler:
        while filler.write(b"x" * 4096):
            pass


@pytest.mark.parametrize("which", ["net", "bin"])
async def test_directory_comes_late(node: Node, which: str) -> None:
    """A directory that is missing is named once; it works as soon as it is there."""
    directory: Path = getattr(node, which)
    directory.rmdir()
    with capture_logs() as log:
        async with node.installing() as installer:
            if which == "bin":
                node.has(FLANNEL)
            await eventually(said(log, f"{directory}: No such file or directory"))
            directory.mkdir()
            if which == "net":
                node.has(FLANNEL)
            await installed(installer)
    assert len([e for e in log if "No such file" in str(e.get("reason"))]) == 1
    assert node.types(OWN) == ["flannel", "portmap", "nodeagent"]


async def test_directory_is_replaced(node: Node) -> None:
    """A directory that is moved away and made anew is watched like the one before."""
    node.has(FLANNEL)
    async with node.installing() as installer:
        await installed(installer)
        node.net.rename(node.root / "away")
        node.net.mkdir()
        node.has("10-weave.conflist")
        await eventually(lambda: node.types(OWN) == ["weave-net", "portmap", "nodeagent"])
        (node.net / OWN).unlink()
        await node.chained()


async def test_directories_behind_links_that_turn(node: Node) -> None:
    """An upgrade of k3s turns a link on the way: binary and entry are in the new place."""
    node.has(FLANNEL)
    (node.root / "releases").mkdir()
    for which in (node.net, node.bin):
        shutil.copytree(which, node.root / "releases/two" / which.name)
        which.rename(node.root / "releases" / which.name)
    (node.root / "current").symlink_to("/releases")  # the host's own root is node.root
    paths = {"net_dir": f"{node.root}/current/net.d", "bin_dir": f"{node.root}/current/bin"}
    async with node.installing(root=str(node.root), **paths) as installer:
        await installed(installer)
        assert (node.root / "releases/bin/nodeagent").exists()
        (node.root / "new").symlink_to("/releases/two")
        (node.root / "new").rename(node.root / "current")
        await eventually((node.root / "releases/two/bin/nodeagent").exists)
        await eventually((node.root / "releases/two/net.d" / OWN).exists)


async def test_not_a_directory(node: Node) -> None:
    """A file in the directory's place is named."""
    node.net.rmdir()
    node.net.write_text("")
    with capture_logs() as log:
        async with node.installing():
            await eventually(said(log, f"{node.net}: Not a directory"))


async def test_read_only(node: Node) -> None:
    """On a read-only file system it says so once, and goes on when it is writable."""
    with mounted(node.net, "size=64k"), capture_logs() as log:
        node.has(FLANNEL)
        remount(node.net, "ro")
        async with node.installing() as installer:
            await eventually(said(log, f"{OWN} cannot be written: Read-only file system"))
            remount(node.net, "rw")
            await installed(installer)
            whole = node.files()
        remount(node.net, "ro")
        async with node.installing() as later:
            await installed(later)
        assert node.files() == whole
    assert len([e for e in log if "Read-only" in str(e.get("reason"))]) == 1


@pytest.mark.parametrize("own_file", [OWN, None])
async def test_disk_full(node: Node, own_file: str | None) -> None:
    """On a full disk nothing is lost or left half: the files are as before until there is room."""
    with mounted(node.net, "size=16k"), capture_logs() as log:
        node.has(FLANNEL)
        before = node.files()
        fill(node.net)
        async with node.installing(own_file=own_file) as installer:
            await eventually(said(log, "cannot be written: No space left on device"))
            there = node.files().items()
            assert {n: d for n, d in there if n in before} == before
            assert all(n in before or n == "filler" or n.endswith("-tmp") for n, _ in there)
            (node.net / "filler").unlink()
            await installed(installer)
        assert not [n for n in node.files() if n.endswith("-tmp")]
    assert len([e for e in log if "No space left" in str(e.get("reason"))]) == 1


async def test_failed_attempt_is_no_news(node: Node) -> None:
    """What it does itself in vain does not wake it: it tries again once a second."""
    with mounted(node.net, "size=16k"), capture_logs() as log:
        node.has(FLANNEL)
        fill(node.net)
        async with node.installing() as installer:
            await eventually(said(log, "No space left on device"))
            first, begun = installer.passes, time.monotonic()
            await eventually(lambda: installer.passes > first + 1)
            assert time.monotonic() - begun > 0.9


async def test_binary_is_missing_from_the_package(node: Node) -> None:
    """Without the binary nothing is put into the chain, and the message has the remedy."""
    node.has(FLANNEL)
    content = node.source.read_bytes()
    node.source.unlink()
    with capture_logs() as log:
        async with node.installing() as installer:
            await eventually(said(log, "python -m nodeagent.cni.shim.build"))
            assert set(node.files()) == {FLANNEL}
            node.source.write_bytes(content)
            await installed(installer)


def test_binary_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The binary is the machine's own; an unknown machine is named."""
    for machine, ending in (("x86_64", "-amd64"), ("aarch64", "-arm64")):
        monkeypatch.setattr("platform.machine", lambda machine=machine: machine)
        assert packaged_binary().endswith(f"nodeagent/cni/shim/bin/nodeagent-cni{ending}")
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    with pytest.raises(NoBinaryError, match="riscv64"):
        packaged_binary()


@pytest.mark.parametrize("own_file", [OWN, None])
async def test_link_within_the_directory(node: Node, own_file: str | None) -> None:
    """A link to a neighbor is one configuration with two names: the file changes, not the link."""
    node.has(FLANNEL)
    (node.net / "05-first.conflist").symlink_to(FLANNEL)
    async with node.installing(own_file=own_file) as installer:
        await installed(installer)
        written = (node.net / (own_file or FLANNEL)).stat().st_mtime_ns
        await node.settled(installer)
    assert (node.net / (own_file or FLANNEL)).stat().st_mtime_ns == written
    assert (node.net / "05-first.conflist").is_symlink()
    assert node.types(own_file or FLANNEL) == ["flannel", "portmap", "nodeagent"]
    assert own_file is None or node.types(FLANNEL) == ["flannel", "portmap"]


async def test_link_out_of_the_directory(node: Node) -> None:
    """A primary behind a link out of the directory is not guessed at; the message names it."""
    (node.root / "elsewhere").write_bytes((CORPUS / FLANNEL).read_bytes())
    (node.net / "05-first.conflist").symlink_to(node.root / "elsewhere")
    node.has(FLANNEL)
    with capture_logs() as log:
        async with node.installing():
            await eventually(said(log, "05-first.conflist: a link that leads out"))
            assert OWN not in node.files()
            (node.net / "05-first.conflist").unlink()
            await node.chained()


async def test_what_is_no_file(node: Node) -> None:
    """Directories and links to nothing are passed over; a FIFO holds nothing up."""
    (node.net / "00-directory.conf").mkdir()
    (node.net / "01-dangling.conf").symlink_to("nothing")
    node.has(FLANNEL)
    os.mkfifo(node.net / "99-fifo.conf")
    async with node.installing() as installer:
        await installed(installer)


async def test_what_a_killed_agent_left(node: Node) -> None:
    """An old temporary file goes; a young one may be another agent's that is at work."""
    node.has(FLANNEL)
    old, young = (node.net / f"{OWN}.{n}.nodeagent-tmp" for n in ("old", "young"))
    for path in (old, young):
        path.write_text("{")
    os.utime(old, (0, 0))
    async with node.installing() as installer:
        await installed(installer)
    assert (old.exists(), young.exists()) == (False, True)


def test_never_half(node: Node) -> None:
    """Whoever reads while a file is replaced reads the old or the new one, whole."""
    path = node.net / FLANNEL
    versions = [letter * 200_000 for letter in (b"a", b"b")]
    path.write_bytes(versions[0])
    with ThreadPoolExecutor(1) as pool:
        for n in range(20):
            writing = pool.submit(confdir.replace, str(path), versions[n % 2], like=str(path))
            while not writing.done():
                assert path.read_bytes() in versions
            writing.result()


def test_written_meanwhile(node: Node) -> None:
    """What an owner wrote after we have read it is not overwritten with what was there before."""
    path = node.has(FLANNEL)
    found = confdir.read(str(node.net))
    put(path, b"newer")
    for change in (b"ours", None):
        with pytest.raises(confdir.MovedError):
            confdir.apply(str(node.net), {FLANNEL: change}, found.files)
    assert node.files() == {FLANNEL: b"newer"}


def test_new_before_old_goes(node: Node) -> None:
    """When the new file cannot be written, the old one is still there."""
    node.has("99-bridge-crlf.conf")
    found = confdir.read(str(node.net))
    (node.net / "99-bridge-crlf.conflist").mkdir()
    changes = {"99-bridge-crlf.conf": None, "99-bridge-crlf.conflist": b"{}"}
    with pytest.raises(OSError, match=r"99-bridge-crlf\.conflist"):
        confdir.apply(str(node.net), changes, found.files)
    assert (node.net / "99-bridge-crlf.conf").exists()
