"""The network configuration that a runtime sends with each request."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from nodeagent.cni.errors import CniError, Code
from nodeagent.cni.json_text import Part, members
from nodeagent.cni.versions import VERSIONS

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """The keys that we read; everything else belongs to other components."""

    version: str
    name: str
    previous: Part | None
    """The result of the plugin before us in the chain."""
    attachments: Any
    """For GC: the attachments that the runtime says are in use; not checked yet."""

    @classmethod
    def parse(cls, text: bytes) -> Self:
        """Read the configuration. Raises ``CniError``."""
        try:
            found = members(text.decode())
        except ValueError as error:
            raise CniError(
                Code.INVALID_JSON, "the network configuration is not valid JSON", _brief(error)
            ) from error
        version = _value(found, "cniVersion")
        if version not in VERSIONS:
            raise CniError(
                Code.INCOMPATIBLE_VERSION,
                f"the network configuration is of CNI version {_shown(version)}",
                f"supported are {', '.join(VERSIONS)}",
            )
        name = _value(found, "name")
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise CniError(
                Code.INVALID_CONFIGURATION, f"{_shown(name)} is no name of a network configuration"
            )
        previous = found.get("prevResult")
        if previous is not None and previous.value is None:
            previous = None
        return cls(
            version=version,
            name=name,
            previous=previous,
            attachments=_value(found, "cni.dev/valid-attachments"),
        )


def _value(found: Mapping[str, Part], name: str) -> Any:
    return found[name].value if name in found else None


def _shown(value: object) -> str:
    if isinstance(value, list | dict):
        return f"a JSON {'array' if isinstance(value, list) else 'object'}"
    return json.dumps(value)[:100]


def _brief(error: Exception) -> str:
    return str(error)[:200]
