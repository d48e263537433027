"""What is in the CNI configuration directory, as container runtimes see it.

A value without a disk behind it: `confdir` makes one of a real directory. It tells the files
that no runtime can use from those that only we cannot, because the two are treated differently:
the former are passed over, the latter are never passed over.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from nodeagent.cni.install.conflist import ISTIO, OURS, BeyondUsError, ConfError, ConfList

Files = Mapping[str, bytes]
"""Content by file name."""
Changes = Mapping[str, bytes | None]
"""New content by file name; None: the file is removed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Directory:
    """What was found in the directory."""

    files: Files
    unreadable: Mapping[str, str] = field(default_factory=dict)
    """Why we cannot read a file, by its name: a runtime may be able to."""
    broken: Mapping[str, str] = field(default_factory=dict)
    """Why there is nothing to read for a runtime either, by the file's name."""

    def invalid(self) -> dict[str, str]:
        """Files that no runtime can use, and why."""
        return {**self.broken, **self._judged()[0]}

    def beyond_us(self) -> dict[str, str]:
        """Files that a runtime may be able to use though we are not, and why we are not."""
        return {**self.unreadable, **self._judged()[1]}

    def _judged(self) -> tuple[dict[str, str], dict[str, str]]:
        invalid: dict[str, str] = {}
        beyond_us: dict[str, str] = {}
        for name, data in self.files.items():
            try:
                as_list(name, data)
            except BeyondUsError as error:
                beyond_us[name] = str(error)
            except ConfError as error:
                invalid[name] = str(error)
        return invalid, beyond_us


def as_list(name: str, data: bytes) -> ConfList:
    """The file as a list, whatever its ending makes of it. Raises ``ConfError``."""
    return ConfList.parse(data) if name.endswith(".conflist") else ConfList.around(data)


def types_of(name: str, data: bytes) -> tuple[str, ...]:
    """Types of the plugins in a file; none if the file cannot be used."""
    try:
        return as_list(name, data).types
    except ConfError:
        return ()


def foreign_type(name: str, data: bytes) -> str:
    """Type of the first plugin that is no part of the mesh; '' if there is none."""
    return next((kind for kind in types_of(name, data) if kind not in (OURS, ISTIO)), "")


def list_name(name: str) -> str:
    """Name of the list that a single plugin's configuration is converted to."""
    return f"{name.rpartition('.')[0]}.conflist"


def single_names(name: str) -> tuple[str, ...]:
    """Names of the configurations that a list may have been converted from."""
    stem = name.rpartition(".")[0]
    return (f"{stem}.conf", f"{stem}.json")
