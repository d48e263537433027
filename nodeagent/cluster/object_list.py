"""A list of the Kubernetes API, read object by object while it arrives.

A list of all namespaces can have megabytes: the API server's cache answers with all of
them, whatever limit was asked for. To parse such an answer at once would hold up the
event loop, and every pod with it, and would need the memory for all objects together. So
the parser here asks for a piece of the text, takes the complete objects out of it, and
asks for the next piece. What is in memory is one piece and one object.
"""

import asyncio
import codecs
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from nodeagent.cluster.api import MAX_OBJECT, GarbledError
from nodeagent.cluster.projection import version_of

_BETWEEN_TURNS = 64 << 10
"""Characters that are parsed before others have their turn: a millisecond's work."""
_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()


class ObjectList:
    """One answer to a list request. Ask once for its `objects`."""

    def __init__(self, pieces: AsyncIterator[bytes]) -> None:
        """`pieces` is the answer's body. What it raises is raised by `objects` too."""
        self._text = _Text(pieces)
        self._fields: dict[str, Any] = {}

    async def objects(self) -> AsyncGenerator[Any, None]:
        """The objects as parsed JSON, in order.

        Raises ``GarbledError``, possibly after some objects, for what is no list.
        """
        text = self._text
        await text.expect("{")
        behind = ","
        while behind == ",":
            key, behind = await text.value()
            if not isinstance(key, str) or behind != ":":
                raise GarbledError("the list is not a JSON object")
            if key == "items" and await text.peek() == "[":
                async for each in self._items():
                    yield each
                behind = await text.take()
            else:
                self._fields[key], behind = await text.value()
        if behind != "}":
            raise GarbledError("the list is not a JSON object")
        await text.end()
        # Go writes an empty list as null.
        if self._fields.get("items") is not None or not self.version:
            raise GarbledError("a list came without its version, or in another shape")
        if not isinstance(self.following, str):
            raise GarbledError("a list goes on at something that is no text")

    async def _items(self) -> AsyncGenerator[Any, None]:
        text = self._text
        await text.expect("[")
        if await text.peek() == "]":
            await text.expect("]")
            return
        behind = ","
        while behind == ",":
            value, behind = await text.value()
            yield value
        if behind != "]":
            raise GarbledError("the objects of the list are not a JSON array")

    @property
    def version(self) -> str:
        """The version that the list shows; known once all objects were read."""
        return version_of(self._fields)

    @property
    def following(self) -> str:
        """Where the list goes on, for ``continue``; "" where this is its end."""
        metadata = self._fields.get("metadata")
        return metadata.get("continue") or "" if isinstance(metadata, dict) else ""


class _Text:
    """The part of the answer that has arrived and is not parsed yet."""

    def __init__(self, pieces: AsyncIterator[bytes]) -> None:
        self._pieces = pieces
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._text = ""
        self._at = 0
        self._parsed = 0
        """Characters since the event loop had its last turn."""

    async def peek(self) -> str:
        """The next character that is not a space."""
        while (at := self._behind_space(self._at)) == len(self._text):
            await self._more()
        self._at = at
        return self._text[at]

    async def take(self) -> str:
        """The same, and go behind it."""
        found = await self.peek()
        self._at += 1
        return found

    async def expect(self, character: str) -> None:
        """Go behind `character`. Raises ``GarbledError`` where another one is next."""
        if await self.take() != character:
            raise GarbledError(f"the answer is no list: {character} is missing")

    async def value(self) -> tuple[Any, str]:
        """The next JSON value, and the character behind it, which shows that it is complete."""
        await self.peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
                after = self._behind_space(end)
                behind = self._text[after]
            except (ValueError, IndexError):
                await self._more()  # the rest of it is not there yet
            except RecursionError:
                raise GarbledError("the list is nested too deeply") from None
            else:
                await self._let_others(after + 1 - self._at)
                self._at = after + 1
                return value, behind

    async def end(self) -> None:
        """Read to the end, so that the connection can be used again."""
        rest = self._text[self._at :]
        while not rest.strip() and (piece := await anext(self._pieces, b"")):
            rest = piece.decode(errors="replace")
        if rest.strip():
            raise GarbledError("something follows the list")

    async def _more(self) -> None:
        """Twice as much as is there: an object of many pieces is not tried for each of them."""
        kept = self._text[self._at :]
        if len(kept) > MAX_OBJECT:
            raise GarbledError(f"the list is not JSON, or has an object of over {MAX_OBJECT} bytes")
        parts, missing = [kept], max(len(kept), 1)
        while missing > 0:
            piece = await anext(self._pieces, b"")
            try:
                part = self._decoder.decode(piece, final=not piece)
            except UnicodeDecodeError as error:
                raise GarbledError(f"the list is not UTF-8: {error.reason}") from None
            if not piece:
                break
            parts.append(part)
            missing -= len(part)
        self._text, self._at = "".join(parts), 0
        if len(self._text) == len(kept):
            raise GarbledError("the list is not JSON, or ends too early")

    async def _let_others(self, parsed: int) -> None:
        self._parsed += parsed
        if self._parsed >= _BETWEEN_TURNS:
            self._parsed = 0
            await asyncio.sleep(0)

    def _behind_space(self, at: int) -> int:
        match = _SPACE.match(self._text, at)
        return match.end() if match else at
