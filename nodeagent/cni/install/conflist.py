"""A network configuration list as text: our entry goes in and out, every other byte stays.

`ConfList` knows where each plugin is in the text, so that `with_entry` and `without_entry` can
cut and insert there. What was installed and taken out again is the file that was there before,
to the byte, whoever wrote it and however it is formatted.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from nodeagent.cni.json_text import BeyondBoundsError, Part, elements, members

OURS = "nodeagent"
"""Type of our entry, and the name of the binary."""
ISTIO = "istio-cni"
"""Type of the entry of Istio's own plugin, in whose place ours is put."""
MAX_SIZE = 1 << 20
"""Bytes; a hundred times what the longest known list has."""
INSTALLED = "installed"
"""Key in our entry for what the installer has to know later; the binary ignores it."""
CONVERTED_NAME = "k8s-pod-network"
"""What a list is called that was made of a single plugin's configuration without a name."""

_BYTES = "surrogateescape"
"""How bytes that are not UTF-8 survive: Go takes them for characters too."""

Entry = Mapping[str, Any]


class ConfError(ValueError):
    """No runtime can use this configuration; the text says why."""


class BeyondUsError(ConfError):
    """A runtime may be able to use this configuration, but we are not; the text says why."""


@dataclass(frozen=True, slots=True)
class ConfList:
    """A list that a runtime can use."""

    text: str
    plugins: tuple[Part, ...]
    version: str
    """Version of the CNI specification; empty where none is named."""

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read a ``.conflist``. Raises ``ConfError``."""
        text, found = _taken_apart(data)
        _require(found, "name")
        version = _version(found)
        if "plugins" not in found:
            raise BeyondUsError('it has no "plugins", or in a directory that only runtimes know')
        array = found["plugins"]
        if not isinstance(array.value, list) or not array.value:
            raise ConfError('"plugins" is not a list with at least one plugin')
        plugins = elements(text, array)
        if not all(map(_type, plugins)):
            raise ConfError('a plugin in "plugins" has no "type"')
        return cls(text, plugins, version)

    @classmethod
    def around(cls, data: bytes) -> Self:
        """Make a list of the one plugin that a ``.conf`` or ``.json`` has.

        The file's text is in the list as it came, so that `single` gives it back. The list
        has the plugin's own name, or ``CONVERTED_NAME``. Raises ``ConfError``.
        """
        text, found = _taken_apart(data)
        _require(found, "type")
        version = _version(found)
        head = {"cniVersion": version} if version else {}
        own = found["name"].value if "name" in found else None
        head["name"] = own if isinstance(own, str) and own else CONVERTED_NAME
        return cls.parse(_encoded(f'{json.dumps(head)[:-1]}, "plugins": [{text}]}}'))

    @property
    def data(self) -> bytes:
        """The file's content."""
        return _encoded(self.text)

    @property
    def entry(self) -> Entry | None:
        """Our entry, the first where there are several."""
        return next((p.value for p in self.plugins if _type(p) == OURS), None)

    @property
    def types(self) -> tuple[str, ...]:
        """The plugins' types, in their order."""
        return tuple(map(_type, self.plugins))

    def with_entry(self, entry: Entry) -> "ConfList":
        """Put `entry` in: in the place of one of ours or Istio's, otherwise at the end.

        The result has one entry of ours and none of Istio's. A list that has exactly this
        entry stays as it is, however somebody else has formatted it. Raises ``ConfError``
        where the result would be beyond the bounds of what is read.
        """
        rendered = json.dumps(entry)
        mine = [n for n, plugin in enumerate(self.plugins) if _type(plugin) in (OURS, ISTIO)]
        if not mine:
            last = self.plugins[-1]
            before = self.text[: last.start]
            space = before[len(before.rstrip(" \t\n\r")) :]
            return self._with(last.end, last.end, f",{space}{rendered}")
        first = self.plugins[mine[0]]
        if len(mine) > 1:
            return self._cut(mine[-1]).with_entry(entry)
        if first.value == json.loads(rendered):
            return self
        return self._with(first.start, first.end, rendered)

    def without_entry(self) -> bytes:
        """Take all entries of ours out again; Istio's stay.

        What `with_entry` added at the end is taken out to the byte.
        """
        mine = [n for n, plugin in enumerate(self.plugins) if _type(plugin) == OURS]
        if not mine:
            return self.data
        if len(self.plugins) == 1:
            only = self.plugins[0]
            return _encoded(self.text[: only.start] + self.text[only.end :])
        return self._cut(mine[-1]).without_entry()

    def single(self) -> bytes | None:
        """What `around` was given, without our entry; None if other plugins have come in."""
        text = (self.data if self.entry is None else self.without_entry()).decode(errors=_BYTES)
        array = members(text, long_numbers=True)["plugins"]
        return _encoded(array.text[1:-1]) if len(array.value) == 1 else None

    def _cut(self, number: int) -> "ConfList":
        plugin = self.plugins[number]
        if number:
            return self._with(self.plugins[number - 1].end, plugin.end, "")
        return self._with(plugin.start, self.plugins[1].start, "")

    def _with(self, start: int, end: int, text: str) -> "ConfList":
        return ConfList.parse(_encoded(self.text[:start] + text + self.text[end:]))


def stand_alone(entry: Entry) -> bytes:
    """Make a ``.conf`` with our plugin alone, for whoever delegates to it (Multus)."""
    head = {"cniVersion": "0.3.1", "name": OURS}  # as old as any Multus in use
    return (json.dumps({**head, **entry}, indent=2) + "\n").encode()


def same(one: bytes, other: bytes) -> bool:
    """Whether both say the same, however they are formatted. Raises ``ConfError``."""
    return one == other or _values(_taken_apart(one)[1]) == _values(_taken_apart(other)[1])


def entry_of(data: bytes) -> Entry | None:
    """Our entry in a ``.conf`` or ``.conflist``, if it has one."""
    try:
        text, found = _taken_apart(data)
    except ConfError:
        return None
    if "type" in found and found["type"].value == OURS:
        return _values(found)
    array = found.get("plugins")
    plugins = elements(text, array) if array and isinstance(array.value, list) else ()
    return next((p.value for p in plugins if _type(p) == OURS), None)


def _taken_apart(data: bytes) -> tuple[str, dict[str, Part]]:
    if len(data) > MAX_SIZE:
        raise BeyondUsError(f"larger than {MAX_SIZE} bytes")
    text = data.decode(errors=_BYTES)
    try:
        return text, members(text, long_numbers=True)
    except BeyondBoundsError as error:
        raise BeyondUsError(str(error)) from None
    except ValueError as error:
        raise ConfError(f"not a JSON object: {error}") from None


def _encoded(text: str) -> bytes:
    return text.encode(errors=_BYTES)


def _values(found: Mapping[str, Part]) -> Entry:
    return {name: part.value for name, part in found.items()}


def _type(plugin: Part) -> str:
    """The plugin's type; empty where there is none."""
    kind = plugin.value.get("type") if isinstance(plugin.value, dict) else None
    return kind if isinstance(kind, str) else ""


def _version(found: Mapping[str, Part]) -> str:
    version = found["cniVersion"].value if "cniVersion" in found else ""
    if not isinstance(version, str):
        raise ConfError('"cniVersion" is not a string')
    return version


def _require(found: Mapping[str, Part], key: str) -> None:
    value = found[key].value if key in found else None
    if not isinstance(value, str) or not value:
        raise ConfError(f'"{key}" is missing, empty or not a string')
