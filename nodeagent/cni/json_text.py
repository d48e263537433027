"""Reads JSON from outside within bounds, and keeps the text that each value was.

Both halves of this room use these functions: requests of container runtimes are taken apart
and passed on, and configuration lists on the node's disk are edited. Neither writes a value
that it has parsed. What is passed on or left alone is the text itself, so no number loses a
digit, no member changes its place, and no byte of somebody else's is lost.

`members` takes the outermost object apart, `elements` an array in it. The bounds hold before
a text is parsed or, for the depth, before a value is handed out: the event loop waits for the
parser, and whoever works on a value may recurse into it.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, NoReturn

MOST_VALUES = 16384
"""Of a text; a collection's list with 2,500 attachments, in both of libcni's keys, has fewer."""
MOST_MEMBERS = 1024
"""Of an object that is taken apart; a network configuration has some dozens."""
DEPTH = 256
"""Levels, as in the plugin's binary (shim/json.c)."""

_SPACE = re.compile(r"[ \t\n\r]*")


class BeyondBoundsError(ValueError):
    """The text may be JSON, but has more in it than is read; `str` says of what."""


@dataclass(frozen=True, slots=True)
class Part:
    """A value in a JSON text."""

    value: Any
    text: str
    """The characters that the value was parsed from."""
    start: int
    """Where they begin in the whole text, counted in characters."""

    @property
    def end(self) -> int:
        """Where the value ends: the place of the character behind it."""
        return self.start + len(self.text)


def decoded(body: bytes) -> Any:
    """Return the value of a JSON text in UTF-8. Raises ``ValueError``."""
    text = body.decode()
    _check_size(text)
    try:
        value = _PLAIN.decode(text)
    except RecursionError as error:
        raise _too_deep() from error
    _check_depth(value)
    return value


def members(text: str, *, long_numbers: bool = False) -> dict[str, Part]:
    """Take a JSON object apart; of members with the same name the last one counts.

    An integer of more than 4,300 digits is refused, or with `long_numbers` a ``Decimal``
    like all integers then. Raises ``ValueError``, ``BeyondBoundsError`` where it is one.
    """
    _check_size(text)
    try:
        found = _taken_apart(text, _EXACT if long_numbers else _PLAIN)
    except RecursionError as error:
        raise _too_deep() from error
    _check_depth([member.value for member in found.values()])
    return found


def elements(text: str, array: Part) -> tuple[Part, ...]:
    """Return the elements of `array`, which `members` has found in `text`."""
    found = []
    at = _skip(text, array.start + 1)
    while not text.startswith("]", at):
        found.append(_part(text, at, _EXACT))
        at = _skip(text, found[-1].end)
        if text.startswith(",", at):
            at = _skip(text, at + 1)
    return tuple(found)


def _taken_apart(text: str, decoder: json.JSONDecoder) -> dict[str, Part]:
    found: dict[str, Part] = {}
    number = 0
    at = _after(text, 0, "{")
    more = not text.startswith("}", at)
    while more:
        if (number := number + 1) > MOST_MEMBERS:
            raise BeyondBoundsError(f"more than {MOST_MEMBERS} members")
        name, end = decoder.raw_decode(text, at)
        if not isinstance(name, str):
            raise ValueError(f"a member's name is not a string (at {at})")
        found[name] = _part(text, _after(text, end, ":"), decoder)
        at = _skip(text, found[name].end)
        if more := text.startswith(",", at):
            at = _after(text, at, ",")
    if _after(text, at, "}") != len(text):
        raise ValueError("something follows the object")
    return found


def _part(text: str, start: int, decoder: json.JSONDecoder) -> Part:
    value, end = decoder.raw_decode(text, start)
    return Part(value, text[start:end], start)


def _check_size(text: str) -> None:
    # Each value but the first follows one of these; those in strings count too, and are few.
    if sum(map(text.count, ",[{")) >= MOST_VALUES:
        raise BeyondBoundsError(f"more than {MOST_VALUES} values")


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(DEPTH):
        level = [inner for outer in level for inner in _inside(outer)]
        if not level:
            return
    raise _too_deep()


def _inside(value: Any) -> Iterator[Any]:
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return (inner for inner in values if isinstance(inner, dict | list))


def _too_deep() -> BeyondBoundsError:
    return BeyondBoundsError(f"nested more than {DEPTH} deep")


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


_PLAIN = json.JSONDecoder(parse_constant=_refuse)
_EXACT = json.JSONDecoder(parse_int=Decimal, parse_constant=_refuse)
