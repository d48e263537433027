"""A network configuration list as text: our entry goes in and out, every other byte stays."""

import itertools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, NoReturn, Self

OURS = "nodeagent"
"""Type of our entry, and the name of the binary."""
ISTIO = "istio-cni"
"""Type of the entry that ours takes the place of."""
MAX_SIZE = 1 << 20
"""Bytes; a hundred times what the longest known list has."""
MAX_DEPTH = 100
"""Levels; what is deeper is no configuration, but an attack on whoever reads it."""
INSTALLED = "installed"
"""Key in our entry for what the installer has to know later; the binary ignores it."""
CONVERTED_NAME = "k8s-pod-network"
"""What a list is called that was made of a single plugin's configuration without a name."""

_SPACE = re.compile(r"[ \t\n\r]*")
_BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*"|([\[{])|([\]}])')

Entry = Mapping[str, Any]


class ConfError(ValueError):
    """No runtime can use this configuration; the text says why."""


class BeyondUsError(ConfError):
    """A runtime may be able to use this configuration, but we are not; the text says why."""


@dataclass(frozen=True, slots=True)
class Plugin:
    """One element of ``plugins``, and where it stands in the text."""

    start: int
    end: int
    value: Any

    @property
    def type(self) -> str:
        """The plugin's type; empty where there is none."""
        kind = self.value.get("type") if isinstance(self.value, dict) else None
        return kind if isinstance(kind, str) else ""


@dataclass(frozen=True, slots=True)
class ConfList:
    """A list that a runtime can use."""

    text: str
    plugins: tuple[Plugin, ...]

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read a ``.conflist``. Raises ``ConfError``."""
        text, value = _decoded(data)
        _require(value, "name")
        if not isinstance(value.get("cniVersion", ""), str):
            raise ConfError('"cniVersion" is not a string')
        if "plugins" not in value:
            raise BeyondUsError('it has no "plugins", or in a directory that only runtimes know')
        plugins = _plugins(text)
        if not plugins:
            raise ConfError('"plugins" is not a list with at least one plugin')
        if not all(plugin.type for plugin in plugins):
            raise ConfError('a plugin in "plugins" has no "type"')
        return cls(text, plugins)

    @classmethod
    def around(cls, data: bytes) -> Self:
        """Make a list of the one plugin that a ``.conf`` or ``.json`` has.

        The file's text is in it as it came, so that `single` gives it back. The list has
        the plugin's own name, or ``CONVERTED_NAME``. Raises ``ConfError``.
        """
        text, value = _decoded(data)
        _require(value, "type")
        version = value.get("cniVersion", "")
        if not isinstance(version, str):
            raise ConfError('"cniVersion" is not a string')
        head = {"cniVersion": version} if version else {}
        own = value.get("name")
        head["name"] = own if isinstance(own, str) and own else CONVERTED_NAME
        return cls.parse(_encoded(f'{json.dumps(head)[:-1]}, "plugins": [{text}]}}'))

    @property
    def data(self) -> bytes:
        """The file's content."""
        return _encoded(self.text)

    @property
    def entry(self) -> Entry | None:
        """Our entry, the first where there are several."""
        return next((p.value for p in self.plugins if p.type == OURS), None)

    @property
    def types(self) -> tuple[str, ...]:
        """The plugins' types, in their order."""
        return tuple(plugin.type for plugin in self.plugins)

    @property
    def version(self) -> str:
        """Version of the CNI specification; empty where none is named."""
        return str(_decoded(self.data)[1].get("cniVersion", ""))

    def with_entry(self, entry: Entry) -> "ConfList":
        """Put `entry` in: where one of ours or Istio's stands, otherwise at the end.

        It is there once afterwards. A list that has it already stays as it is, however
        somebody else has formatted it.
        """
        rendered = json.dumps(entry)
        mine = [n for n, plugin in enumerate(self.plugins) if plugin.type in (OURS, ISTIO)]
        if not mine:
            last = self.plugins[-1]
            before = self.text[: last.start]
            space = before[len(before.rstrip(" \t\n\r")) :]
            return self._with(last.end, last.end, f",{space}{rendered}")
        first = self.plugins[mine[0]]
        if len(mine) > 1:
            return self._cut(mine[-1]).with_entry(entry)
        if first.value == _decoder.decode(rendered):
            return self
        return self._with(first.start, first.end, rendered)

    def without_entry(self) -> bytes:
        """Take all entries of ours out again; Istio's stay.

        What `with_entry` added at the end is taken out to the byte.
        """
        mine = [n for n, plugin in enumerate(self.plugins) if plugin.type == OURS]
        if not mine:
            return self.data
        if len(self.plugins) == 1:
            only = self.plugins[0]
            return _encoded(self.text[: only.start] + self.text[only.end :])
        return self._cut(mine[-1]).without_entry()

    def single(self) -> bytes | None:
        """What `around` was given, without our entry; None if other plugins have come in."""
        rest = _encoded(self.text) if self.entry is None else self.without_entry()
        text = rest.decode(errors="surrogateescape")
        array = _array(text)
        if len(_plugins(text)) != 1 or array is None:
            return None
        return _encoded(text[array.start + 1 : array.end - 1])

    def _cut(self, number: int) -> "ConfList":
        plugin = self.plugins[number]
        if number:
            return self._with(self.plugins[number - 1].end, plugin.end, "")
        return self._with(plugin.start, self.plugins[1].start, "")

    def _with(self, start: int, end: int, text: str) -> "ConfList":
        return ConfList.parse(_encoded(self.text[:start] + text + self.text[end:]))


def standing_alone(entry: Entry) -> bytes:
    """Make a ``.conf`` with our plugin alone, for whoever delegates to it (Multus)."""
    head = {"cniVersion": "0.3.1", "name": OURS}  # as old as any Multus in use
    return (json.dumps({**head, **entry}, indent=2) + "\n").encode()


def same(one: bytes, other: bytes) -> bool:
    """Whether both say the same, however they are formatted. Raises ``ConfError``."""
    return one == other or bool(_decoded(one)[1] == _decoded(other)[1])


def entry_of(data: bytes) -> Entry | None:
    """Our entry in a ``.conf`` or ``.conflist``, if it has one."""
    try:
        text, value = _decoded(data)
    except ConfError:
        return None
    if value.get("type") == OURS:
        return dict(value)
    return next((p.value for p in _plugins(text) if p.type == OURS), None)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


# Numbers of any length: they are compared, never written.
_decoder = json.JSONDecoder(parse_int=Decimal, parse_constant=_refuse)


def _decoded(data: bytes) -> tuple[str, dict[str, Any]]:
    if len(data) > MAX_SIZE:
        raise BeyondUsError(f"larger than {MAX_SIZE} bytes")
    # Go takes bytes that are not UTF-8 for characters too, and they have to survive.
    text = data.decode(errors="surrogateescape")
    try:
        value = _decoder.decode(text)
    except RecursionError:
        raise BeyondUsError("nested too deeply") from None
    except ValueError as error:
        raise ConfError(f"not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ConfError("not a JSON object")
    if _depth(text) > MAX_DEPTH:
        raise BeyondUsError("nested too deeply")
    return text, value


def _depth(text: str) -> int:
    steps = (bool(found[1]) - bool(found[2]) for found in _BRACKETS.finditer(text))
    return max(itertools.accumulate(steps))


def _encoded(text: str) -> bytes:
    return text.encode(errors="surrogateescape")


def _require(value: Mapping[str, Any], key: str) -> str:
    found = value.get(key)
    if not isinstance(found, str) or not found:
        raise ConfError(f'"{key}" is missing, empty or not a string')
    return found


def _array(text: str) -> Plugin | None:
    # Of members with the same name the last counts, for Go as for Python.
    spans = [span for key, span in _members(text) if key == "plugins"]
    return spans[-1] if spans and isinstance(spans[-1].value, list) else None


def _plugins(text: str) -> tuple[Plugin, ...]:
    array = _array(text)
    return tuple(_items(text, array.start)) if array else ()


# The text is known to be JSON in the two below: only places are looked for.


def _members(text: str) -> Iterator[tuple[str, Plugin]]:
    at = _skip(text, _skip(text, 0) + 1)
    while text[at] != "}":
        key, at = _decoder.raw_decode(text, at)
        at = _skip(text, _skip(text, at) + 1)
        value, end = _decoder.raw_decode(text, at)
        yield key, Plugin(at, end, value)
        at = _after_comma(text, end)


def _items(text: str, at: int) -> Iterator[Plugin]:
    at = _skip(text, at + 1)
    while text[at] != "]":
        value, end = _decoder.raw_decode(text, at)
        yield Plugin(at, end, value)
        at = _after_comma(text, end)


def _after_comma(text: str, at: int) -> int:
    at = _skip(text, at)
    return _skip(text, at + 1) if text[at] == "," else at


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at
