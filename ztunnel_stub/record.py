"""Writing down every ZDS message, one JSON object a line."""

import json
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Self

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import DecodeError, Message


class Recorder:
    """Appends to a file. Each line is written whole, as soon as the message passes."""

    def __init__(self, path: str | None) -> None:
        """Without a path nothing is written. Raises ``OSError``."""
        self._file = open(path, "a", buffering=1, encoding="utf-8") if path else None  # noqa: SIM115

    def sent(self, data: bytes, kind: type[Message]) -> None:
        """The stub sent `data`, which should be a `kind`."""
        self._write("sent", data, kind, ())

    def received(self, data: bytes, kind: type[Message], descriptors: Sequence[int]) -> None:
        """The agent sent `data`, which should be a `kind`, with `descriptors`."""
        self._write("received", data, kind, descriptors)

    def _write(
        self, direction: str, data: bytes, kind: type[Message], descriptors: Sequence[int]
    ) -> None:
        if self._file is None:
            return
        line: dict[str, Any] = {
            "time": datetime.now(UTC).isoformat(),
            "direction": direction,
            "type": kind.DESCRIPTOR.name,
            "size": len(data),
            "descriptors": len(descriptors),
        }
        try:
            line["message"] = MessageToDict(kind.FromString(data), preserving_proto_field_name=True)
        except DecodeError:
            line["undecodable"] = data.hex()
        if descriptors:
            line["netns_inode"] = os.fstat(descriptors[0]).st_ino
        self._file.write(json.dumps(line) + "\n")

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
