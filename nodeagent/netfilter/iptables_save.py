"""The parser of what ``iptables-save`` and ``iptables -S`` print.

A listing is split into statements, statements are sorted by table, and of the chains with
given names the rules and the jumps to them are found. Comments in a listing can be written
by a pod's owner and can have line breaks and quotes in them.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

_ESCAPED = re.compile(r"\\.")


R_co = TypeVar("R_co", str, bytes, covariant=True)


@dataclass(frozen=True, slots=True)
class Chain(Generic[R_co]):
    """A chain of given name, as it is installed."""

    rules: tuple[R_co, ...]
    """Text of a listing, or bytes of the kernel; without counters."""
    jumps: tuple[int, ...]
    """Positions, counted from 1, of the hook's rules that lead here without a condition."""
    held: bool = False
    """Somebody else's rule leads here too: the kernel refuses to delete the chain then."""


def find_chains(listing: str, hooks: Mapping[str, str]) -> dict[str, dict[str, Chain[str]]]:
    """Find chains in a listing: by table, then by the chain's name.

    `hooks` has the name of each chain by the built-in chain that should lead to it. A
    chain that is empty, and there only because somebody else's rule leads to it, is left out.
    """
    return {
        table: {
            name: chain
            for name, chain in _chains(lines, hooks)
            if chain.rules or chain.jumps or not chain.held
        }
        for table, lines in _tables(listing).items()
    }


def statements(listing: str) -> Iterator[str]:
    """Split a listing where statements end.

    A line break within quotes is part of a comment, which a pod's owner may have written:
    what follows it is no statement.
    """
    lines: list[str] = []
    quoted = False
    # Not splitlines(): a comment may have any of the line breaks of Unicode in it.
    for line in listing.split("\n"):
        lines.append(line)
        if '"' in line and _ESCAPED.sub("", line).count('"') % 2:
            quoted = not quoted
        if not quoted:
            yield "\n".join(lines)
            lines = []


def _tables(listing: str) -> dict[str, list[str]]:
    """Return the statements of each table."""
    tables: dict[str, list[str]] = {}
    current: list[str] = []
    for statement in statements(listing):
        if statement.startswith("*"):
            current = tables.setdefault(statement[1:], [])
        else:
            current.append(statement)
    return tables


def _chains(lines: list[str], hooks: Mapping[str, str]) -> Iterator[tuple[str, Chain[str]]]:
    ours = tuple(f"-A {name} " for name in hooks.values())
    rules = [line for line in lines if line.startswith("-A ")]
    foreign = [rule for rule in rules if not f"{rule} ".startswith(ours)]
    for hook, name in hooks.items():
        if any(line.startswith(f":{name} ") for line in lines):
            jump = f"-A {hook} -j {name}"
            before = [rule for rule in rules if rule.startswith(f"-A {hook} ")]
            yield (
                name,
                Chain(
                    rules=tuple(rule for rule in rules if f"{rule} ".startswith(f"-A {name} ")),
                    jumps=tuple(at for at, rule in enumerate(before, start=1) if rule == jump),
                    held=any(rule != jump and _leads_to(name, rule) for rule in foreign),
                ),
            )


def _leads_to(name: str, rule: str) -> bool:
    return any(f" {option} {name} " in f"{rule} " for option in ("-j", "-g"))
