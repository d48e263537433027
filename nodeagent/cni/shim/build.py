"""Builds the CNI binary for both architectures, on either: `python -m nodeagent.cni.shim.build`.

Zig brings a compiler and musl for every target, from PyPI and pinned: the same source
gives the same bytes on every machine.
"""

import functools
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SOURCE = Path(__file__).parent
BINARIES = SOURCE / "bin"
TARGETS = {"amd64": "x86_64-linux-musl", "arm64": "aarch64-linux-musl"}
"""Go's name of an architecture, as container images have it, and Zig's of the target."""

WARNINGS = (
    *("-Wall", "-Wextra", "-Wpedantic", "-Werror"),
    *("-Wconversion", "-Wsign-conversion", "-Wshadow", "-Wformat=2", "-Wundef", "-Wvla"),
    *("-Wcast-qual", "-Wstrict-prototypes", "-Wmissing-prototypes", "-Wswitch-enum"),
)
DIALECT = ("-std=c11", "-D_GNU_SOURCE")
_SIZE = ("-Os", "-static", "-s", "-ffunction-sections", "-fdata-sections", "-Wl,--gc-sections")
_HARDENING = ("-fstack-protector-strong",)


def sources() -> list[str]:
    """The names of the C files, relative to the directory that they are in."""
    return sorted(path.name for path in SOURCE.glob("*.c"))


def build(directory: Path, architecture: str) -> None:
    """Build one binary into `directory`. Raises ``CalledProcessError``."""
    made = directory / f".{architecture}.{os.getpid()}"
    target = ("-target", TARGETS[architecture])
    flags = (*DIALECT, *WARNINGS, *_SIZE, *_HARDENING)
    compiler = (sys.executable, "-m", "ziglang", "cc", *target, *flags)
    # Nothing of this machine's paths gets into the binary.
    subprocess.run((*compiler, *sources(), "-o", made), cwd=SOURCE, check=True)
    made.replace(directory / f"nodeagent-cni-{architecture}")


def main() -> None:
    """Build both; what Zig has in its cache takes a tenth of a second."""
    BINARIES.mkdir(exist_ok=True)
    with ThreadPoolExecutor() as pool:
        list(pool.map(functools.partial(build, BINARIES), TARGETS))


if __name__ == "__main__":
    main()
