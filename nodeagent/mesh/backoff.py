"""How long to wait before the next try."""

import random

FIRST = 0.005
LONGEST = 5.0


class Backoff:
    """Doubles from 5 ms to 5 s, with jitter."""

    __slots__ = ("_first", "_longest", "_next")

    def __init__(self, *, first: float = FIRST, longest: float = LONGEST) -> None:
        self._first = first
        self._longest = longest
        self._next = first

    def delay(self) -> float:
        """Seconds until the next try: between half and all of the current step."""
        step, self._next = self._next, min(self._next * 2, self._longest)
        return step * random.uniform(0.5, 1)  # noqa: S311 - spreads load, guards nothing

    def reset(self) -> None:
        """Start over: the last try succeeded, or what was tried has changed."""
        self._next = self._first
