"""Unix sockets that the agent listens on."""

import contextlib
import socket
from pathlib import Path

import pytest

from nodeagent.linux.unix_sockets import listening

SEQPACKET = socket.SOCK_SEQPACKET


def test_private_and_replaces_a_stale_one(tmp_path: Path) -> None:
    """The socket has mode 0600, and one that SIGKILL left behind is replaced."""
    path = tmp_path / "run" / "agent.sock"
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX, SEQPACKET) as left_behind:
        left_behind.bind(str(path))
    with listening(str(path), SEQPACKET, setting="HERE"):
        assert path.stat().st_mode & 0o777 == 0o600
    assert not path.exists()


def test_newer_agents_socket_stays(tmp_path: Path) -> None:
    """An agent that stops does not take away the socket of the one that replaces it."""
    path = tmp_path / "agent.sock"
    with contextlib.ExitStack() as newer:
        with listening(str(path), SEQPACKET, setting="HERE"):
            newer.enter_context(listening(str(path), SEQPACKET, setting="HERE"))
        assert path.exists()
    assert not path.exists()


def test_something_else_in_its_place(tmp_path: Path) -> None:
    """A file that is no socket is left alone; the error names the path and the setting."""
    path = tmp_path / "agent.sock"
    path.write_text("precious")
    with (
        pytest.raises(OSError, match=r"agent\.sock \(HERE\).*not a socket"),
        listening(str(path), SEQPACKET, setting="HERE"),
    ):
        pass
    assert path.read_text() == "precious"
