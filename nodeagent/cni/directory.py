"""What is in the CNI configuration directory, as container runtimes see it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from nodeagent.cni.install.conflist import ISTIO, OURS, BeyondUsError, ConfError, ConfList

Files = Mapping[str, bytes]
"""Content by name: what there is, as runtimes see it."""
Changes = Mapping[str, bytes | None]
"""New content by name; None: the file goes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Directory:
    """What was found in the directory."""

    files: Files
    unreadable: Mapping[str, str] = field(default_factory=dict)
    """Why, by name: a runtime may be able to read them."""
    broken: Mapping[str, str] = field(default_factory=dict)
    """Why, by name: there is nothing to read for a runtime either."""

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
    """Types of the plugins in a file; none if it cannot be used."""
    try:
        return as_list(name, data).types
    except ConfError:
        return ()


def foreign_type(name: str, data: bytes) -> str:
    """Type of the first plugin that is no part of the mesh; '' if there is none."""
    return next((kind for kind in types_of(name, data) if kind not in (OURS, ISTIO)), "")


def list_name(name: str) -> str:
    """What the list is called that a single plugin's configuration becomes."""
    return f"{name.rpartition('.')[0]}.conflist"


def single_names(name: str) -> tuple[str, ...]:
    """Names of what a list may have been made from."""
    stem = name.rpartition(".")[0]
    return (f"{stem}.conf", f"{stem}.json")
