"""The CNI plugin's binary: the one for this machine, and its copy where runtimes look for it."""

import hashlib
import os
import platform
import stat
from dataclasses import dataclass
from typing import Self

from nodeagent.cni.install import confdir
from nodeagent.cni.install.conflist import OURS

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_MODE = 0o755


class NoBinaryError(Exception):
    """The package has no binary for this machine; the text has the remedy."""


def packaged_binary() -> str:
    """Path of the binary for this machine in the package. Raises ``NoBinaryError``."""
    machine = platform.machine()
    if machine not in _ARCHITECTURES:
        known = " and ".join(_ARCHITECTURES)
        raise NoBinaryError(f"there is no CNI binary for {machine}: only for {known}")
    name = f"nodeagent-cni-{_ARCHITECTURES[machine]}"
    return os.path.join(os.path.dirname(os.path.dirname(__file__)), "shim", "bin", name)


@dataclass(frozen=True, slots=True)
class Binary:
    """The content that the binary directory should have, and its digest."""

    content: bytes
    digest: str

    @classmethod
    def load(cls, source: str) -> Self:
        """Read the binary from the package, at path `source`. Raises ``NoBinaryError``."""
        try:
            data = confdir.content(source)
        except OSError as error:
            raise NoBinaryError(
                f"the CNI binary {source} cannot be read ({error.strerror}): build it with"
                " `python -m nodeagent.cni.shim.build`; the released package has it"
            ) from error
        return cls(data, hashlib.sha256(data).hexdigest()[:16])

    def is_installed(self, bin_dir: str) -> bool:
        """Whether the binary is in `bin_dir`, whole and executable. Raises ``OSError``."""
        path = os.path.join(bin_dir, OURS)
        try:
            status = os.lstat(path)
            if not stat.S_ISREG(status.st_mode) or stat.S_IMODE(status.st_mode) != _MODE:
                return False
            return confdir.content(path) == self.content
        except FileNotFoundError:
            return False

    def install(self, bin_dir: str) -> None:
        """Put the binary there; a copy that runs meanwhile runs on. Raises ``OSError``."""
        confdir.replace(os.path.join(bin_dir, OURS), self.content, like=None, least_mode=_MODE)
