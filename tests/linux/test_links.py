"""Paths through symbolic links: where they lead, and that a turn is news."""

import asyncio
import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from nodeagent.linux.directory_watch import FolderLostError, FolderWatch
from nodeagent.linux.links import follow
from tests.eventually import PATIENCE


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A host's root, with two releases of something, and links that are the host's own."""
    root = tmp_path / "host"
    for release in ("one", "two"):
        (root / "data" / release / "bin").mkdir(parents=True)
    (root / "data/current").symlink_to("/data/one")  # absolute, as k3s makes it
    (root / "opt").symlink_to("data/../data/current/bin")
    return root


def turn(link: Path, target: str) -> None:
    """Have a link lead elsewhere in one step, as careful owners do."""
    (link.parent / "new").symlink_to(target)
    (link.parent / "new").rename(link)


async def lost(watch: FolderWatch) -> None:
    """Wait until the folder is not at its path any more."""
    async with asyncio.timeout(PATIENCE):
        with contextlib.suppress(FolderLostError):
            while True:
                await watch.changed()


def test_absolute_link_leads_below_the_root(host: Path) -> None:
    """In a container the host's links lead to the host's files, not the container's."""
    followed = follow(f"{host}/opt", str(host))
    assert followed.path == f"{host}/data/one/bin"
    assert followed.links == ((str(host), "opt"), (f"{host}/data", "current"))
    assert follow(f"{host}/opt/../../../../../etc", str(host)).path == f"{host}/etc"
    assert follow(f"{host}/nothing/there", str(host)).path == f"{host}/nothing/there"


def test_as_the_kernel_follows(host: Path) -> None:
    """On a bare host it is what the kernel does, for relative paths as well."""
    (host / "data/current").unlink()
    (host / "data/current").symlink_to(host / "data/one")
    for path in (host / "opt", Path(os.path.relpath(host / "opt")), host / "opt/.."):
        assert follow(str(path)).path == os.path.realpath(path)


def test_loop_ends(host: Path) -> None:
    """Links that lead to each other are an error, as with the kernel."""
    (host / "a").symlink_to("b")
    (host / "b").symlink_to("a")
    with pytest.raises(OSError, match="Too many levels"):
        follow(f"{host}/a/x", str(host))


@pytest.mark.parametrize(
    "change",
    [
        lambda host: turn(host / "data/current", "/data/two"),
        lambda host: turn(host / "opt", "data/two/bin"),
        lambda host: (host / "data/current").rename(host / "data/previous"),
        lambda host: (host / "data/one").rename(host / "data/zero"),
        lambda host: shutil.rmtree(host / "data"),
    ],
    ids=["absolute link turns", "relative link turns", "link goes", "directory above", "all goes"],
)
async def test_turned_path_is_lost(host: Path, change: Callable[[Path], object]) -> None:
    """What is on the way to a folder is watched: the folder at its path is another one then."""
    with FolderWatch(f"{host}/opt", str(host)) as watch:
        (host / "data/one/bin/file").write_text("")
        assert "file" in (await watch.changed()).names
        change(host)
        await lost(watch)


async def test_neighbors_of_a_link_are_no_news(host: Path) -> None:
    """What happens beside a link on the way wakes nobody."""
    with FolderWatch(f"{host}/opt", str(host)) as watch:
        (host / "data/other").mkdir()
        (host / "elsewhere").symlink_to("data")
        (host / "data/one/bin/file").write_text("")
        assert (await watch.changed()).names == {"file"}


async def test_link_within_the_folder_itself(host: Path) -> None:
    """A folder that is a step of the way to itself still tells what changes in it."""
    (host / "data/self").symlink_to(".")
    with FolderWatch(f"{host}/data/self", str(host)) as watch:
        (host / "data/file").write_text("")
        assert "file" in (await watch.changed()).names
        turn(host / "data/self", "one")
        await lost(watch)
