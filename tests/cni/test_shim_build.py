"""What the build makes: small static programs for both architectures."""

import struct
from pathlib import Path

import pytest

from nodeagent.cni.shim import build

MACHINES = {"amd64": 62, "arm64": 183}
"""The e_machine of each, from the ELF specification's registry."""

EXECUTABLE = 2
INTERPRETER = 3
GNU_STACK = 0x6474E551


@pytest.mark.usefixtures("shim")
@pytest.mark.parametrize("architecture", build.TARGETS)
def test_binary_is_small_and_static(architecture: str) -> None:
    """Each runs on any Linux of its architecture: no loader, no library, under 100 KiB."""
    binary = build.BINARIES / f"nodeagent-cni-{architecture}"
    content = binary.read_bytes()
    assert len(content) < 100 * 1024
    assert binary.stat().st_mode & 0o777 == 0o755
    assert content[:6] == b"\x7fELF\x02\x01"
    assert struct.unpack_from("<HH", content, 16) == (EXECUTABLE, MACHINES[architecture])
    segments = dict(_segments(content))
    assert INTERPRETER not in segments
    assert segments[GNU_STACK] & 1 == 0, "the stack is executable"


@pytest.mark.usefixtures("shim")
def test_build_is_reproducible(tmp_path: Path) -> None:
    """Built again and elsewhere, the same source gives the same bytes, and nothing beside them."""
    for architecture in build.TARGETS:
        build.build(tmp_path, architecture)
        name = f"nodeagent-cni-{architecture}"
        assert (tmp_path / name).read_bytes() == (build.BINARIES / name).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"nodeagent-cni-{architecture}" for architecture in sorted(build.TARGETS)
    ]


def _segments(content: bytes) -> list[tuple[int, int]]:
    """The type and the flags of each program header."""
    (offset,) = struct.unpack_from("<Q", content, 32)
    size, count = struct.unpack_from("<HH", content, 54)
    return [struct.unpack_from("<II", content, offset + size * i) for i in range(count)]
