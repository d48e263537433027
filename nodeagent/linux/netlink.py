"""Plain netlink: requests, acknowledgments, dumps and attributes.

Written by hand for speed: a dump takes 0.04 ms here, and 1.5 ms with ``pyroute2.IPRoute``,
which takes 10 MiB to import. The layouts are in linux/netlink.h.
"""

import errno
import os
import socket
import struct
from collections.abc import Iterator
from typing import Self

NLM_F_REQUEST = 0x1
NLM_F_ACK = 0x4
NLM_F_DUMP = 0x300
NLM_F_REPLACE = 0x100
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400

_NLM_F_DUMP_INTR = 0x10
_NLMSG_ERROR = 2
_NLMSG_DONE = 3
_NLA_TYPE_MASK = 0x3FFF  # without the flags for nested and for network byte order
_SOL_NETLINK = 270
_NETLINK_GET_STRICT_CHK = 12

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_CODE = struct.Struct("=i")
_DUMP_SIZE = 32 * 1024  # the kernel never sends a larger part of a dump: netlink_dump()
_DUMP_ATTEMPTS = 10
LONGEST_DUMP = 16 << 20
"""Bytes that a dump may have: 40,000 nftables rules. A pod decides how many rules it has."""


class Netlink:
    """One netlink socket in the network namespace of the thread that makes it, until `close`."""

    def __init__(self, protocol: int) -> None:
        """Open a socket for `protocol`, a ``NETLINK_…`` number. Raises ``OSError``."""
        self._protocol = protocol
        self._socket = _open(protocol)

    def dump(self, kind: int, body: bytes, *, most: int | None = None) -> list[bytes]:
        """Return the bodies of all answers to the dump request `kind`.

        With `most` the dump ends after so many answers. The kernel then does not make the rest:
        the socket is closed, and a new one opened in the calling thread's netns. A
        dump during which something changed is repeated. Raises ``OSError``: EAGAIN where the
        changes do not stop, EFBIG where there is more than `LONGEST_DUMP`.
        """
        request = _message(kind, NLM_F_REQUEST | NLM_F_DUMP, body)
        for _ in range(_DUMP_ATTEMPTS):
            self._socket.send(request)
            bodies: list[bytes] = []
            size = 0
            consistent = True
            for flags, answer in self._answers():
                consistent = consistent and not flags & _NLM_F_DUMP_INTR
                if answer is not None:
                    bodies.append(answer)
                    size += len(answer)
                if len(bodies) == most or size > LONGEST_DUMP:
                    self._socket.close()
                    self._socket = _open(self._protocol)
                    if len(bodies) == most:
                        return bodies
                    raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
            if consistent:
                return bodies
        raise OSError(errno.EAGAIN, "changed by others all the time while it was read")

    def each(self, kind: int, body: bytes) -> Iterator[bytes]:
        """Yield the body of each answer to the dump request `kind`, and keep none.

        For what there may be any number of. Read to the end: an unread rest makes the socket
        useless. Raises ``OSError``.
        """
        self._socket.send(_message(kind, NLM_F_REQUEST | NLM_F_DUMP, body))
        return (answer for _, answer in self._answers() if answer is not None)

    def first(self, kind: int, body: bytes) -> bytes | None:
        """Return the body of the first answer to the dump request `kind`; None for none.

        The kernel makes one part of the dump, whatever its size. The rest stays in the socket,
        which cannot be used for anything else then. Raises ``OSError``.
        """
        self._socket.send(_message(kind, NLM_F_REQUEST | NLM_F_DUMP, body))
        return next(self._answers())[1]

    def get(self, kind: int, body: bytes) -> bytes | None:
        """Return the answer to the request `kind` for one object; None where there is none.

        Raises ``OSError``.
        """
        self._socket.send(_message(kind, NLM_F_REQUEST | NLM_F_ACK, body))
        found = None
        try:
            for _, answer in self._answers():
                found = answer or found
        except FileNotFoundError:
            return None
        return found

    def request(self, kind: int, flags: int, body: bytes) -> None:
        """Make one change and wait for its acknowledgment. Raises ``OSError``."""
        self._socket.send(_message(kind, NLM_F_REQUEST | NLM_F_ACK | flags, body))
        for _ in self._answers():
            pass

    def _answers(self) -> Iterator[tuple[int, bytes | None]]:
        """Flags and body of each answer; the end mark has no body."""
        while True:
            for kind, flags, body in _split(self._socket.recv(_DUMP_SIZE)):
                if kind in {_NLMSG_ERROR, _NLMSG_DONE}:
                    if code := _error_code(body):
                        raise OSError(code, os.strerror(code))
                    yield flags, None
                    return
                yield flags, body

    def close(self) -> None:
        """Close the socket. Idempotent."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _open(protocol: int) -> socket.socket:
    made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
    # Without this option the kernel ignores the filter of a route dump.
    made.setsockopt(_SOL_NETLINK, _NETLINK_GET_STRICT_CHK, 1)
    return made


def attribute(kind: int, payload: bytes) -> bytes:
    """Encode one attribute, padded to four bytes."""
    return _ATTRIBUTE.pack(4 + len(payload), kind) + payload + bytes(-len(payload) % 4)


class MalformedError(OSError):
    """An answer that ends too early, or lacks an attribute."""

    def __init__(self) -> None:
        super().__init__(errno.EBADMSG, os.strerror(errno.EBADMSG))


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Split `data` into attributes: type without flags, payload. Raises `MalformedError`."""
    offset, end = 0, len(data)
    while offset < end:
        if end - offset < _ATTRIBUTE.size:
            raise MalformedError
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if not _ATTRIBUTE.size <= length <= end - offset:
            raise MalformedError
        yield kind & _NLA_TYPE_MASK, data[offset + 4 : offset + length]
        offset += length + 3 & ~3


class Attributes(dict[int, bytes]):
    """Attributes by type. To ask for one that is not there raises `MalformedError`."""

    def __init__(self, data: bytes) -> None:
        """Take `data` apart. Raises `MalformedError`."""
        super().__init__(attributes(data))

    def __missing__(self, kind: int) -> bytes:
        raise MalformedError


def _message(kind: int, flags: int, body: bytes) -> bytes:
    # Each socket has one request at a time, so the sequence number can be 0.
    return _HEADER.pack(_HEADER.size + len(body), kind, flags, 0, 0) + body


def _split(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    offset = 0
    while offset < len(data):
        if len(data) - offset < _HEADER.size:
            raise MalformedError
        length, kind, flags, _, _ = _HEADER.unpack_from(data, offset)
        if not _HEADER.size <= length <= len(data) - offset:
            raise MalformedError
        yield kind, flags, data[offset + _HEADER.size : offset + length]
        offset += length + 3 & ~3


def _error_code(body: bytes) -> int:
    """The errno in the body of an error, an acknowledgment or the end of a dump; 0 for none."""
    if len(body) < _CODE.size:
        raise MalformedError
    (code,) = _CODE.unpack_from(body)
    return -int(code)
