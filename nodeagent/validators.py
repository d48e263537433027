"""Checks of the text of a setting.

Each check takes the text and returns the value, or raises ``ValueError`` with what
is expected instead.
"""

import math
import os
import re
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address
from typing import TypeVar

_SOCKET_PATH_LIMIT = 107
"""Bytes in ``sockaddr_un.sun_path`` less the closing zero, see unix(7)."""

A = TypeVar("A", IPv4Address, IPv6Address)


def socket_path(text: str) -> str:
    """A path at which a Unix socket can be."""
    return _absolute(text, _SOCKET_PATH_LIMIT)


def directory_of(socket: str) -> Callable[[str], str]:
    """A directory in which a Unix socket of the name `socket` can be."""
    return lambda text: _absolute(text, _SOCKET_PATH_LIMIT - len(socket) - 1)


def path(text: str) -> str:
    """Any path, whether it exists or not."""
    if not text or "\0" in text:
        raise ValueError("a path is expected")
    return text


def file_name(text: str) -> str:
    """A plain name within a directory, or nothing."""
    if "/" in text or "\0" in text or text in {".", ".."} or len(os.fsencode(text)) > 255:
        raise ValueError("the name of a file is expected, without a directory")
    return text


def prefix(text: str) -> str:
    """An absolute path to put before others, or nothing."""
    if text.strip("/") and (not os.path.isabs(text) or "\0" in text):
        raise ValueError("an absolute path is expected, or nothing")
    return text.rstrip("/")


def endpoint(text: str) -> str:
    """The path of a Unix socket, also in kubelet's notation ``unix:///run/…``; or nothing."""
    return socket_path(text.removeprefix("unix://")) if text else text


def listen_address(text: str) -> str:
    """``[HOST]:PORT`` to listen on, or nothing."""
    host, colon, port = text.rpartition(":")
    plain = port.isascii() and port.isdigit() and " " not in host
    if text and not (colon and plain and 0 < int(port) < 65536):
        raise ValueError("[HOST]:PORT is expected, or nothing")
    return text


def port_or_none(text: str) -> int:
    """A port to listen on, or 0."""
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and int(text) < 65536):
        raise ValueError("a port from 1 to 65535 is expected, or 0")
    return int(text)


def taint_key(text: str) -> str:
    """The key of a node's taint."""
    if not re.fullmatch(r"([a-z0-9.-]{1,253}/)?[A-Za-z0-9][A-Za-z0-9._-]{0,62}", text):
        raise ValueError("the key of a taint is expected, like cni.istio.io/not-ready")
    return text


def name(limit: int) -> Callable[[str], str]:
    """A Kubernetes name of at most `limit` characters."""

    def check(text: str) -> str:
        plain = text.replace("-", "").replace(".", "")
        if not (plain.isascii() and plain.isalnum()) or text != text.lower() or len(text) > limit:
            raise ValueError(
                f"at most {limit} characters of a to z, 0 to 9, '-' and '.' are expected"
            )
        return text

    return check


def namespaces(text: str) -> frozenset[str]:
    """A comma-separated list, empty for none."""
    try:
        return frozenset(map(name(63), _items(text)))
    except ValueError:
        raise ValueError("a comma-separated list of namespaces is expected") from None


def user_ids(text: str) -> frozenset[int]:
    """A comma-separated list with at least one number."""
    items = _items(text)
    # 2^32 - 1 means "no user" to the kernel.
    if not items or not all(i.isascii() and i.isdigit() and int(i) < 2**32 - 1 for i in items):
        raise ValueError("a comma-separated list of numeric user ids is expected")
    return frozenset(map(int, items))


def seconds(text: str) -> float:
    """A length of time."""
    if (value := seconds_or_none(text)) == 0:
        raise ValueError("a positive number of seconds is expected")
    return value


def seconds_or_none(text: str) -> float:
    """A length of time, or 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise ValueError("a positive number of seconds is expected")
    return value


def address(family: type[A]) -> Callable[[str], A]:
    """An address that packets can have as their source."""
    expected = f"a unicast {'IPv4' if family is IPv4Address else 'IPv6'} address is expected"

    def check(text: str) -> A:
        try:
            value = family(text)
        except ValueError:
            raise ValueError(expected) from None
        if value.is_multicast or value.is_unspecified or value.is_loopback or "%" in text:
            raise ValueError(expected)
        return value

    return check


def choice(*allowed: str) -> Callable[[str], str]:
    """One of these words."""

    def check(text: str) -> str:
        if text not in allowed:
            words = ", ".join(word or "nothing" for word in allowed)
            raise ValueError(f"one of {words} is expected")
        return text

    return check


def _absolute(text: str, limit: int) -> str:
    if not os.path.isabs(text) or "\0" in text or len(os.fsencode(text)) > limit:
        raise ValueError(f"an absolute path of at most {limit} bytes is expected")
    return text


def _items(text: str) -> list[str]:
    return [item for item in map(str.strip, text.split(",")) if item]
