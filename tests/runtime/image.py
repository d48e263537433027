"""The one image of the tests' pods: a single static program, as an OCI archive."""

import io
import platform
import subprocess
import tarfile
from pathlib import Path

from deploy.image import archive

NAME = "tests.invalid/pod:1"
"""No registry has it: it is imported before the first pod."""
PROGRAM = "/pod"

_SOURCE = Path(__file__).with_name("pod_program.c")
_COMPILE = ("gcc", "-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-static", "-Os")
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def build(directory: Path) -> Path:
    """Compile the program and pack it. Returns the archive, for ``ctr images import``."""
    program = directory / "pod"
    subprocess.run([*_COMPILE, "-o", program, _SOURCE], check=True)
    packed = directory / "pod.tar"
    packed.write_bytes(_archive(program.read_bytes()))
    return packed


def _archive(program: bytes) -> bytes:
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w:gz") as tar:
        entry = tarfile.TarInfo(PROGRAM.removeprefix("/"))
        entry.size, entry.mode = len(program), 0o755
        tar.addfile(entry, io.BytesIO(program))
    config = {"Entrypoint": [PROGRAM]}
    architecture = _ARCHITECTURES[platform.machine()]
    return archive(NAME, architecture, config, [layer.getvalue()], created=0)
