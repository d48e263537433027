"""JSON from outside, bounded before it is read: the event loop waits for it meanwhile."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

MOST_VALUES = 16384
"""Of a text; a collection's list with 2,500 attachments, in both of libcni's keys, has fewer."""
MOST_MEMBERS = 1024
"""Of an object that is taken apart; a network configuration has some dozens."""
DEPTH = 256
"""As in the plugin's binary (shim/json.c); what follows a decoder may use more stack than that."""

_SPACE = re.compile(r"[ \t\n\r]*")


@dataclass(frozen=True, slots=True)
class Member:
    """A member of a JSON object: its value, and the text that it was."""

    value: Any
    text: str


def decoded(body: bytes) -> Any:
    """Return the value of a JSON text in UTF-8. Raises ``ValueError``."""
    text = body.decode()
    _check_size(text)
    try:
        value = _DECODER.decode(text)
    except RecursionError as error:
        raise _too_deep() from error
    _check_depth(value)
    return value


def members(text: str) -> dict[str, Member]:
    """Take a JSON object apart; of members with the same name the last one counts.

    What is passed on is the text of a member: no number loses a digit, and nothing
    changes its order. Raises ``ValueError``.
    """
    _check_size(text)
    try:
        found = _taken_apart(text)
    except RecursionError as error:
        raise _too_deep() from error
    _check_depth([member.value for member in found.values()])
    return found


def _taken_apart(text: str) -> dict[str, Member]:
    found: dict[str, Member] = {}
    number = 0
    at = _after(text, 0, "{")
    more = not text.startswith("}", at)
    while more:
        if (number := number + 1) > MOST_MEMBERS:
            raise ValueError(f"more than {MOST_MEMBERS} members")
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


def _check_size(text: str) -> None:
    # Each value but the first follows one of these; those in strings count too, and are few.
    if sum(map(text.count, ",[{")) >= MOST_VALUES:
        raise ValueError(f"more than {MOST_VALUES} values")


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


def _too_deep() -> ValueError:
    return ValueError(f"nested more than {DEPTH} deep")


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
