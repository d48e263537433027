"""A list is read object by object while it arrives, however it is cut into pieces."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.cluster import object_list
from nodeagent.cluster.api import GarbledError
from nodeagent.cluster.object_list import ObjectList

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=5,
)


async def pieces_of(body: bytes, sizes: Iterable[int]) -> AsyncIterator[bytes]:
    for size in sizes:
        if not body:
            return
        yield body[:size]
        body = body[size:]
    if body:
        yield body


async def read(body: bytes, *sizes: int) -> tuple[list[Any], str, str]:
    page = ObjectList(pieces_of(body, sizes))
    objects = [each async for each in page.objects()]
    return objects, page.version, page.following


@given(
    st.lists(json_values, max_size=5),
    st.text(max_size=5),
    st.booleans(),
    st.sampled_from([None, 1]),
    st.lists(st.integers(1, 40), max_size=30),
)
async def test_any_pieces(
    objects: list[Any], more: str, late: bool, indent: int | None, sizes: list[int]
) -> None:
    """The objects, and the list's own fields, are those that a parser of the whole finds."""
    metadata = {"metadata": {"resourceVersion": "7", "continue": more}}
    items = {"items": objects}
    raw = {"kind": "PodList", **items, **metadata} if late else {**metadata, **items, "n": 12}
    for ascii_only in (True, False):
        body = json.dumps(raw, indent=indent, ensure_ascii=ascii_only).encode()
        assert await read(body, *sizes) == (json.loads(body)["items"], "7", more)


@pytest.mark.parametrize("items", [b"null", b"[]", b"[ ]"])
async def test_empty(items: bytes) -> None:
    """A list without objects is none that went wrong."""
    body = b'{"items":%s,"metadata":{"resourceVersion":"7"}}' % items
    assert await read(body) == ([], "7", "")


WHOLE = b'{"metadata":{"resourceVersion":"7"},"items":[{"a":"\xc3\xa4"},{"b":[1,2]}]}'


@pytest.mark.fuzz
@given(st.integers(0, len(WHOLE) - 1), st.binary(max_size=3), st.integers(1, 100))
async def test_no_list(at: int, instead: bytes, size: int) -> None:
    """What is cut or changed anywhere is read as JSON has it, or refused as garbled."""
    body = WHOLE[:at] + instead + WHOLE[at + len(instead) :] if instead else WHOLE[:at]
    try:
        objects, version, _ = await read(body, size)
    except GarbledError:
        return
    raw = json.loads(body)
    assert (objects, version) == (raw.get("items") or [], raw["metadata"]["resourceVersion"])


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b'{"items":[]}',
        b'{"items":7,"metadata":{"resourceVersion":"7"}}',
        b'{"items":[],"metadata":{"resourceVersion":"7","continue":7}}',
        b'{"items":[' + b"[" * 100_000,
        b'{"items":["\xff"],"metadata":{"resourceVersion":"7"}}',
        WHOLE + b"{}",
        b"<html>",
    ],
)
async def test_garbled(body: bytes) -> None:
    """Nothing else is taken for a list."""
    with pytest.raises(GarbledError):
        await read(body)


async def test_object_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """One object cannot fill the memory."""
    monkeypatch.setattr(object_list, "MAX_OBJECT", 10_000)
    taken = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal taken
        yield b'{"items":["'
        while True:
            taken += 1000
            yield b"x" * 1000

    with pytest.raises(GarbledError, match="over 10000 bytes"):
        async for _ in ObjectList(endless()).objects():
            pass
    assert taken <= 40_000


async def test_objects_come_before_the_list_has_ended() -> None:
    """The list is not kept in memory: an object is there before the next one is sent."""
    seen = asyncio.Event()

    async def slowly() -> AsyncIterator[bytes]:
        yield WHOLE[:60]
        await seen.wait()
        yield WHOLE[60:]

    objects = []
    async for each in ObjectList(slowly()).objects():
        objects.append(each)
        seen.set()
    assert objects == json.loads(WHOLE)["items"]


async def test_others_have_their_turn() -> None:
    """A list of 5,000 namespaces that is there at once is parsed in pieces of 64 KiB (L34)."""
    labels = {f"label-{n}": "x" * 60 for n in range(8)}
    objects = [{"metadata": {"name": f"n-{n}", "labels": labels}} for n in range(5000)]
    raw = {"metadata": {"resourceVersion": "7"}, "items": objects}
    body = json.dumps(raw).encode()
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    beside = asyncio.create_task(other())
    found, _, _ = await read(body)
    beside.cancel()
    assert found == objects
    assert turns >= len(body) // (80 << 10)
