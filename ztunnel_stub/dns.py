"""DNS messages, as far as the stub has to understand them."""

import struct

_HEADER = struct.Struct("!6H")
_RESPONSE = 0x8000
_RECURSION_AVAILABLE = 0x0080
_KEPT = 0x7900  # opcode and "recursion desired" of the query
_SERVFAIL = 2
_QUESTION_TAIL = 4  # type and class

MAX_MESSAGE = 0xFFFF


def is_query(message: bytes) -> bool:
    """Whether `message` asks for an answer. Answering anything else could go on for ever."""
    return len(message) >= _HEADER.size and not message[2] & _RESPONSE >> 8


def servfail(query: bytes) -> bytes:
    """The answer to `query` that says: no resolver can be asked."""
    identifier, flags, *_ = _HEADER.unpack_from(query)
    question = _question(query)
    return (
        _HEADER.pack(
            identifier,
            _RESPONSE | flags & _KEPT | _RECURSION_AVAILABLE | _SERVFAIL,
            1 if question else 0,
            0,
            0,
            0,
        )
        + question
    )


def framed(message: bytes) -> bytes:
    """`message` as it goes over TCP, behind its length."""
    return struct.pack("!H", len(message)) + message


def take_framed(buffer: bytearray) -> bytes | None:
    """Remove the first message from what came over TCP; None while it is not complete."""
    if len(buffer) < 2:
        return None
    end = 2 + int.from_bytes(buffer[:2])
    if len(buffer) < end:
        return None
    message = bytes(buffer[2:end])
    del buffer[:end]
    return message


def _question(query: bytes) -> bytes:
    """The query's only question, empty where it is malformed or not alone."""
    (count,) = struct.unpack_from("!H", query, 4)
    end = _HEADER.size
    while count == 1 and end < len(query):
        length = query[end]
        end += 1 + length
        if length == 0:
            question = query[_HEADER.size : end + _QUESTION_TAIL]
            return question if end + _QUESTION_TAIL <= len(query) else b""
    return b""
