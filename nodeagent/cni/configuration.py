"""The network configuration that a runtime sends with each request."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, Self

from nodeagent.cni.errors import CniError, Code

VERSIONS = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
"""Versions of the CNI specification that are spoken, oldest first."""
NEWEST = VERSIONS[-1]

_SPACE = re.compile(r"[ \t\n\r]*")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]*")


@dataclass(frozen=True, slots=True)
class Member:
    """A member of a JSON object: its value, and the text that it was."""

    value: Any
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """What is read of it; everything else is other components' own."""

    version: str
    name: str
    previous: Member | None
    """The result of the plugin before us in the chain."""
    attachments: Any
    """What the runtime says is in use, for GC."""

    @classmethod
    def parse(cls, text: bytes) -> Self:
        """Read the configuration. Raises ``CniError``."""
        try:
            found = members(text.decode())
        except (ValueError, RecursionError) as error:
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


def members(text: str) -> dict[str, Member]:
    """Take a JSON object apart; of members with the same name the last one counts.

    What is passed on is the text of a member: no number loses a digit, and nothing
    changes its order. Raises ``ValueError``, and ``RecursionError`` for one too deep.
    """
    found: dict[str, Member] = {}
    at = _after(text, 0, "{")
    more = not text.startswith("}", at)
    while more:
        name, end = _DECODER.raw_decode(text, at)
        if not isinstance(name, str):
            raise ValueError(f"a member's name is not a string (at {at})")
        start = _after(text, end, ":")
        value, end = _DECODER.raw_decode(text, start)
        found[name] = Member(value, text[start:end])
        at = _skip(text, end)
        if more := text.startswith(",", at):
            at = _after(text, at, ",")
    if _after(text, at, "}") != len(text):
        raise ValueError("something follows the object")
    return found


def _after(text: str, at: int, token: str) -> int:
    at = _skip(text, at)
    if not text.startswith(token, at):
        raise ValueError(f"expected {token} at {at}")
    return _skip(text, at + 1)


def _skip(text: str, at: int) -> int:
    space = _SPACE.match(text, at)
    return space.end() if space else at


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse)


def _value(found: Mapping[str, Member], name: str) -> Any:
    return found[name].value if name in found else None


def _shown(value: object) -> str:
    return json.dumps(value)[:100]


def _brief(error: Exception) -> str:
    return str(error)[:200]
