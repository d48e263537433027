"""Directories with whatever a node may have in them: read in bounded time, never an exception."""

import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from nodeagent.cni.install import confdir
from nodeagent.cni.install.conflist import MAX_SIZE
from nodeagent.cni.install.plan import NotYetError, Placement, plan, stamped
from tests.cni.install.installing import CRIO, ENTRY, OWN, Node, installed

_PLACEMENT = Placement(own_file=OWN, loading=CRIO)
_ENTRY = stamped(ENTRY, at="2026-01-02T03:04:05", binary="0123")
_LIST = b'{"cniVersion": "1.0.0", "name": "n", "plugins": [{"type": "x"}]}'


def _socket(path: Path) -> None:
    # A socket's path has 107 bytes at the most.
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(os.fsencode(f"/proc/self/fd/{folder}/{path.name}"))
    finally:
        os.close(folder)


def _huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


_MAKERS: dict[str, Callable[[Path, bytes], object]] = {
    "list": lambda path, _: path.write_bytes(_LIST),
    "bytes": lambda path, data: path.write_bytes(data),
    "directory": lambda path, _: path.mkdir(),
    "fifo": lambda path, _: os.mkfifo(path),
    "socket": lambda path, _: _socket(path),
    "huge": lambda path, _: _huge(path),
    "loop": lambda path, _: path.symlink_to(path.name),
    "dangling": lambda path, _: path.symlink_to("nothing"),
    "to a directory": lambda path, _: path.symlink_to("."),
    "to a device": lambda path, _: path.symlink_to("/dev/zero"),
    "long link": lambda path, _: path.symlink_to("x/" * 2000),
}
"""What may have a name in a directory."""

_names = st.builds(
    lambda stem, suffix: os.fsdecode(stem + suffix),
    st.binary(min_size=1, max_size=20).filter(lambda name: not {0, 47} & set(name)),
    st.sampled_from([b".conf", b".conflist", b".json"]),
)


@pytest.mark.fuzz
@given(
    st.dictionaries(
        _names, st.tuples(st.sampled_from(sorted(_MAKERS)), st.binary(max_size=50)), max_size=6
    )
)
def test_any_directory(entries: dict[str, tuple[str, bytes]]) -> None:
    """Names of any bytes, and all kinds of files: each is judged, and a plan made or refused."""
    with tempfile.TemporaryDirectory() as directory:
        for name, (kind, data) in entries.items():
            _MAKERS[kind](Path(directory, name), data)
        found = confdir.read(directory)
        assert all(len(data) <= MAX_SIZE + 1 for data in found.files.values())
        judged = found.files.keys() | found.unreadable.keys() | found.broken.keys()
        regular = {name for name, (kind, _) in entries.items() if kind in ("list", "bytes")}
        assert regular <= judged
        assert {n for n, (kind, _) in entries.items() if kind == "directory"} & judged == set()
        try:
            made = plan(found, _PLACEMENT, _ENTRY)
        except NotYetError:
            return
        confdir.apply(directory, made.changes, found.files)
        assert plan(confdir.read(directory), _PLACEMENT, _ENTRY).changes == {}


async def test_name_that_is_no_text(tmp_path: Path) -> None:
    """A primary whose name is not UTF-8 is installed into like others, and can be told of."""
    node = Node(tmp_path)
    Path(node.net, os.fsdecode(b"10-\xff.conflist")).write_bytes(_LIST)
    with capture_logs() as log:
        async with node.installing() as installer:
            await installed(installer)
    assert node.types(OWN) == ["x", "nodeagent"]
    assert [entry["primary"] for entry in log] == [os.fsdecode(b"10-\xff.conflist")]


def test_too_many_files(tmp_path: Path) -> None:
    """No more are read than a node can have in earnest; the error has the number."""
    for number in range(confdir.MOST + 1):
        (tmp_path / f"{number}.conf").touch()
    with pytest.raises(OSError, match=f"more than {confdir.MOST} CNI configurations"):
        confdir.read(str(tmp_path))
    (tmp_path / "0.conf").unlink()
    assert len(confdir.read(str(tmp_path)).files) == confdir.MOST


def test_what_is_written_can_be_read_by_the_group(tmp_path: Path) -> None:
    """CNI_CONF_GROUP_READ adds to the mode of a file, be it new or old, and takes nothing."""
    (tmp_path / "10-a.conflist").write_bytes(b"{}")
    (tmp_path / "10-a.conflist").chmod(0o604)
    before = {"10-a.conflist": b"{}"}
    changes = {"10-a.conflist": b"{ }", "02-b.conflist": b"{ }"}
    confdir.apply(str(tmp_path), changes, before, least_mode=0o640)
    modes = {path.name: path.stat().st_mode & 0o7777 for path in tmp_path.iterdir()}
    assert modes == {"10-a.conflist": 0o644, "02-b.conflist": 0o640}
