"""Any JSON is taken apart to the character, within bounds of size, number and depth."""

import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodeagent.cni.json_text import (
    DEPTH,
    MOST_MEMBERS,
    MOST_VALUES,
    BeyondBoundsError,
    decoded,
    elements,
    members,
)
from tests.cni.test_request import values

spaces = st.text(" \t\n\r", max_size=3)
indents = st.sampled_from([None, 0, 1, "\t"])


@settings(max_examples=50)
@given(st.dictionaries(st.text(), values), spaces, indents)
def test_members_keep_their_text(value: dict[str, Any], space: str, indent: Any) -> None:
    """An object is taken apart as JSON says, and each member keeps its text and its place."""
    texts = {key: json.dumps(inner, indent=indent) for key, inner in value.items()}
    inside = ",".join(
        f"{space}{json.dumps(key)}{space}:{space}{text}{space}" for key, text in texts.items()
    )
    whole = f"{space}{{{inside}{space}}}{space}"
    found = members(whole)
    assert {key: part.value for key, part in found.items()} == value
    assert {key: part.text for key, part in found.items()} == texts
    assert all(whole[part.start : part.end] == part.text for part in found.values())


@settings(max_examples=50)
@given(st.lists(values), spaces, indents)
def test_elements_keep_their_text(value: list[Any], space: str, indent: Any) -> None:
    """So is an array in it."""
    texts = [json.dumps(inner, indent=indent) for inner in value]
    array = "[" + space + f"{space},{space}".join(texts) + space + "]"
    whole = f'{{"a": 1, "b": {array}}}'
    found = elements(whole, members(whole)["b"])
    assert [part.text for part in found] == texts
    assert [part.value for part in found] == value
    assert all(whole[part.start : part.end] == part.text for part in found)


def test_last_of_equal_names() -> None:
    """Of members with the same name the last one counts, as for Go."""
    assert members('{"a": 1, "b": 2, "a": 3.0}')["a"].text == "3.0"


def test_long_numbers() -> None:
    """An integer that Python's parser refuses is refused, or exact where that is asked for."""
    text = '{"a":' + "1" * 5000 + "}"
    with pytest.raises(ValueError, match="limit"):
        members(text)
    assert members(text, long_numbers=True)["a"].value == Decimal("1" * 5000)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{} {}", "{,}", '{"a":1,}', '{"a" 1}', '{"a":}', "{1:2}", '{"a":NaN}',
     "\ufeff{}", '{"a":[1,]}', '{"a":[,]}'],
)  # fmt: skip
def test_what_is_no_json_object(text: str) -> None:
    """Anything else is refused, but not as something that is too large."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the type below is what counts
        members(text)
    assert not isinstance(caught.value, BeyondBoundsError)


@pytest.mark.parametrize("closed", [True, False])
@pytest.mark.parametrize("depth", [*range(DEPTH - 2, DEPTH + 3), *range(950, 1010), 1_000_000])
def test_depth(depth: int, closed: bool) -> None:
    """What is nested too deep is refused, and nothing that is accepted is too deep to be used."""
    text = '{"a":' + "[" * depth + "]" * depth * closed + "}"  # depth + 1
    for read in (members, lambda text: decoded(text.encode())):
        if depth < DEPTH and closed:
            assert read(text)
        else:
            with pytest.raises(ValueError, match=r"deep|Expecting|value"):
                read(text)


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("{" + ",".join('"":1' for _ in range(MOST_MEMBERS)) + "}", False),
        ("{" + ",".join('"":1' for _ in range(MOST_MEMBERS + 1)) + "}", True),
        ('{"a":[' + ",".join("1" for _ in range(MOST_VALUES - 2)) + "]}", False),
        ('{"a":[' + ",".join("1" for _ in range(MOST_VALUES)) + "]}", True),
        ('{"a":[' + ",".join("[]" for _ in range(MOST_VALUES // 2)) + "]}", True),
        ('{"a":[' + ",".join("{}" for _ in range(MOST_VALUES // 2)) + "]}", True),
    ],
)
def test_number_of_values(text: str, refused: bool) -> None:
    """What would hold the event loop is refused before it is read (L34)."""
    if not refused:
        assert members(text)
        return
    with pytest.raises(BeyondBoundsError, match="more than"):
        members(text)
