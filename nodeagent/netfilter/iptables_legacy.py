"""Reading iptables-legacy's chains with ``getsockopt``, without running a program.

The kernel hands out a table only as a whole, as a block of entries: 20 ms for 20,000 rules,
0.05 for the usual ones, where ``iptables-legacy-save`` takes 45 and 4. Reading needs
CAP_NET_ADMIN alone, where the program needs CAP_NET_RAW as well. A question about a table
that is not there would make the table, so `table_names` is asked first. The
layouts are in linux/netfilter/x_tables.h, linux/netfilter_ipv4/ip_tables.h and its twin
for IPv6.
"""

import errno
import os
import socket
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from nodeagent.linux import syscalls as kernel
from nodeagent.netfilter.errors import RulesError, wrap_oserror
from nodeagent.netfilter.iptables_save import Chain
from nodeagent.netfilter.rule import Family, Hook

_NAMES = {
    Family.V4: "/proc/thread-self/net/ip_tables_names",
    Family.V6: "/proc/thread-self/net/ip6_tables_names",
}
"""They list the tables that were made in the thread's own netns; reading makes none (L7)."""

_GET_INFO, _GET_ENTRIES = 64, 65  # IPT_SO_GET_INFO and IPT_SO_GET_ENTRIES, IP6T_… alike
_INFO = struct.Struct("=32sI5I5III")  # name, valid hooks, entries, underflows, number, size
_HOOKS = {Hook.PREROUTING: 0, Hook.OUTPUT: 3, Hook.POSTROUTING: 4}  # NF_INET_…
_ENTRIES = struct.Struct("=32sI4x")  # name, size; then the entries
_ATTEMPTS = 10
"""To read a table: its size is asked for first, and may change before the entries are."""
LARGEST_TABLE = 16 << 20
"""Bytes of a table that is read: 100,000 rules. A pod may have one of 512 MiB."""

_TARGET_SIZE = 32  # bytes: size, name, revision; then the target's own data
_VERDICT = struct.Struct("=i")  # the data of the target without a name
_HEAD = b"ERROR\0"
"""The target of a chain's first entry; its data is the chain's name."""
_NUMBERS = struct.Struct("=HH")


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where things are in an entry, in bytes."""

    level: int
    family: socket.AddressFamily
    conditions: int
    """Where the conditions on addresses, interfaces and protocol end, which are first."""
    offsets: struct.Struct
    """Offset of the target, and of the next entry, behind the conditions."""
    size: int
    """Of an entry without matches (``-m``) and target."""


_LAYOUTS = {
    Family.V4: _Layout(socket.SOL_IP, socket.AF_INET, 84, struct.Struct("=88xHH"), 112),
    Family.V6: _Layout(41, socket.AF_INET6, 136, struct.Struct("=140xHH"), 168),
}


def table_names(family: Family) -> frozenset[str]:
    """Return the tables that are in the calling thread's netns. Raises `RulesError`."""
    path = _NAMES[family]
    try:
        with wrap_oserror("look for iptables' tables"), open(path, encoding="ascii") as names:
            return frozenset(names.read().split())
    except RulesError as error:
        if isinstance(error.__cause__, FileNotFoundError):  # a kernel without iptables-legacy
            return frozenset()
        if isinstance(error.__cause__, PermissionError):
            # The file belongs to the user namespace of the netns, with mode 0440.
            raise RulesError(
                f"cannot read {path} of a pod in a user namespace of its own (hostUsers: false):"
                " CAP_DAC_READ_SEARCH is missing"
            ) from error
        raise


def legacy_in_use(*families: Family) -> bool:
    """Whether iptables-legacy has tables there in any of `families`. Raises `RulesError`."""
    return any(map(table_names, families))


def table_info(family: Family, table: str) -> bytes:
    """The kernel's header of `table`, in which a change of its rules' number or size shows.

    For a table that was made: the question would make it. The ordinary socket that it is
    asked on needs no CAP_NET_RAW. Raises `RulesError`.
    """
    layout = _LAYOUTS[family]
    with (
        wrap_oserror(f"look at iptables-legacy's table {table}"),
        socket.socket(layout.family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as asked,
    ):
        question = _INFO.pack(table.encode(), *(0,) * 13)
        return kernel.ask_socket(asked.fileno(), layout.level, _GET_INFO, question)


def read_chains(family: Family, table: str, names: Mapping[Hook, str]) -> dict[Hook, Chain[bytes]]:
    """Read the chains `names` of `table`, which must be there (see `table_names`).

    Each is called from the built-in chain of its hook. A chain that is empty, and there only
    because somebody else's rule leads to it, is left out. Raises `RulesError`.
    """
    layout = _LAYOUTS[family]
    with wrap_oserror(f"read iptables-legacy's table {table}"):
        places, entries = _get(layout, table)
    if not any(name.encode() + b"\0" in entries for name in names.values()):
        return {}
    return parse(family, entries, places, names)


def parse(
    family: Family, entries: bytes, places: "Places", names: Mapping[Hook, str]
) -> dict[Hook, Chain[bytes]]:
    """Find the chains `names` in a table as the kernel hands it out. Raises `RulesError`."""
    try:
        return dict(_chains(_LAYOUTS[family], entries, places, names))
    except (struct.error, IndexError, ValueError) as error:
        raise RulesError("iptables-legacy's table has an unknown form") from error


Places = dict[Hook, tuple[int, int]]
"""For each built-in chain the offsets of its first entry and of its policy."""


def _get(layout: _Layout, table: str) -> tuple[Places, bytes]:
    """Ask for the table. Raises ``OSError``."""
    with socket.socket(layout.family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as asked:
        fd, name = asked.fileno(), table.encode()
        for _ in range(_ATTEMPTS):
            info = kernel.ask_socket(fd, layout.level, _GET_INFO, _INFO.pack(name, *(0,) * 13))
            _, _, *numbers, _, size = _INFO.unpack(info)
            if size > LARGEST_TABLE:
                raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
            question = _ENTRIES.pack(name, size) + bytes(size)
            try:
                answer = kernel.ask_socket(fd, layout.level, _GET_ENTRIES, question)
            except BlockingIOError:
                continue
            places = {hook: (numbers[at], numbers[at + 5]) for hook, at in _HOOKS.items()}
            return places, answer[_ENTRIES.size :]
    raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))


def _chains(
    layout: _Layout, data: bytes, places: Places, names: Mapping[Hook, str]
) -> Iterator[tuple[Hook, Chain[bytes]]]:
    offsets, heads, jumps = _walk(layout, data)
    ends = dict(zip(heads, [*list(heads)[1:], len(data)], strict=True))
    for hook, name in names.items():
        head = next((offset for offset, found in heads.items() if found == name), None)
        if head is None:
            continue
        # After its head; the last entry is the return that every chain ends with.
        inside = [offset for offset in offsets if head < offset < ends[head]]
        begin, policy = places[hook]
        called = [offset for offset in offsets if begin <= offset < policy]
        leading = jumps.get(inside[0], [])
        plain = {at for at in leading if _is_plain(layout, data, at)}
        chain = Chain(
            rules=tuple(_comparable(layout, data, offset) for offset in inside[:-1]),
            jumps=tuple(at for at, offset in enumerate(called, 1) if offset in plain),
        )
        held = len(leading) > len(chain.jumps)
        if chain.rules or chain.jumps or not held:
            yield hook, replace(chain, held=held)


def _walk(layout: _Layout, data: bytes) -> tuple[list[int], dict[int, str], dict[int, list[int]]]:
    """Return the offsets of all entries, the names of chains, and the jumps to each chain.

    Names are by the offset of the chain's head, jumps by the offset of its first rule. One
    pass without objects per entry: a pod may have ten thousands of rules.
    """
    offsets: list[int] = []
    heads: dict[int, str] = {}
    jumps: dict[int, list[int]] = {}
    offset, end, unpack = 0, len(data), layout.offsets.unpack_from
    while offset < end:
        target, size = unpack(data, offset)
        if not layout.size <= target <= size - _TARGET_SIZE - 4 or size > end - offset:
            raise ValueError("an entry without a target")
        name = offset + target + 2
        value = offset + target + _TARGET_SIZE
        if not data[name]:
            (verdict,) = _VERDICT.unpack_from(data, value)
            if verdict >= 0:
                jumps.setdefault(verdict, []).append(offset)
        elif data.startswith(_HEAD, name):
            heads[offset] = data[value : offset + size].partition(b"\0")[0].decode(errors="replace")
        offsets.append(offset)
        offset += size
    return offsets, heads, jumps


def _is_plain(layout: _Layout, data: bytes, offset: int) -> bool:
    """Whether an entry has no condition."""
    target, _ = layout.offsets.unpack_from(data, offset)
    return bool(target == layout.size and not any(data[offset : offset + layout.conditions]))


def _comparable(layout: _Layout, data: bytes, offset: int) -> bytes:
    """Return an entry without counters, the kernel's own notes and its position."""
    target, size = layout.offsets.unpack_from(data, offset)
    value = offset + target + _TARGET_SIZE
    about = data[value : offset + size]
    if not data[offset + target + 2]:
        (verdict,) = _VERDICT.unpack_from(data, value)
        if verdict >= 0:  # a rule without a target goes to the next one by its place
            about = _VERDICT.pack(verdict - offset)
    return b"".join(
        (
            data[offset : offset + layout.conditions],
            _NUMBERS.pack(target, size),
            data[offset + layout.size : value],
            about,
        )
    )
