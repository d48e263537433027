"""Misbehavior on request, for tests of the agent."""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from ztunnel_stub.codec import MAX_PACKET, ack


class FaultKind(StrEnum):
    """What the stub can do wrong; the names of ``--fault``."""

    NO_HELLO = "no-hello"
    LATE_ANSWER = "late-answer"
    MISSING_ANSWER = "missing-answer"
    NEGATIVE_ANSWER = "negative-answer"
    GARBAGE = "garbage"
    CLOSE_IN_SNAPSHOT = "close-in-snapshot"
    UNASKED_ANSWER = "unasked-answer"
    DOUBLE_ANSWER = "double-answer"
    OVERSIZED_ANSWER = "oversized-answer"


HELP = """\
faults, each NAME[:ARG][:COUNT]; after COUNT times the stub behaves (without: never):
  no-hello[:COUNT]              connect and say nothing
  late-answer:SECONDS[:COUNT]   answer a request only after SECONDS
  missing-answer[:COUNT]        do what is asked, and never answer
  negative-answer[:COUNT]       answer an add with an error; a pod that is not served
                                yet stays pending until the stub's own retry
  garbage[:COUNT]               answer with bytes that are no message
  close-in-snapshot:N[:COUNT]   close the connection instead of answering a snapshot's
                                N-th message
  unasked-answer[:COUNT]        send an answer straight after the hello
  double-answer[:COUNT]         answer a request twice
  oversized-answer[:COUNT]      answer with a message of more than 1,024 bytes
"""

_WITH_ARGUMENT = {FaultKind.LATE_ANSWER, FaultKind.CLOSE_IN_SNAPSHOT}

GARBAGE = b"\xff" * 16
"""No protobuf message: its first tag is never complete."""

OVERSIZED = ack("x" * MAX_PACKET)
"""A well-formed answer that does not fit into a packet."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One ``--fault``."""

    kind: FaultKind
    argument: float = 0
    """Seconds, or a message's number, counted from one."""
    count: int | None = None
    """How often it happens; None: always."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """From ``NAME[:ARG][:COUNT]``. Raises ``ValueError``."""
        name, *rest = text.split(":")
        if name not in set(FaultKind):
            raise ValueError(f"the names are {', '.join(FaultKind)}")
        kind = FaultKind(name)
        argument = float(rest.pop(0)) if kind in _WITH_ARGUMENT and rest else None
        if kind in _WITH_ARGUMENT and argument is None:
            raise ValueError(f"{kind} needs an argument")
        count = int(rest.pop(0)) if rest else None
        if rest or (count is not None and count < 1) or not 0 <= (argument or 0) < math.inf:
            raise ValueError("not NAME[:ARG][:COUNT]")
        return cls(kind, argument or 0, count)


class Faults:
    """Which faults are still to happen."""

    def __init__(self, faults: Iterable[Fault] = ()) -> None:
        self._faults = list(faults)
        self._happened = Counter[Fault]()

    def find(self, kind: FaultKind) -> Fault | None:
        """The fault of this kind that is due, without using it up."""
        for fault in self._faults:
            if fault.kind is kind and self._happened[fault] != fault.count:
                return fault
        return None

    def take(self, kind: FaultKind) -> Fault | None:
        """The fault of this kind that is due; it has happened once more now."""
        if (fault := self.find(kind)) is not None:
            self._happened[fault] += 1
        return fault
