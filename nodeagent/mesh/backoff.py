"""How long to wait before the next try: longer each time, up to a limit."""

import random

FIRST = 0.005
"""Seconds: what is missing is often there a moment later, as a new sandbox's netns."""
LONGEST = 5.0
"""Seconds: a pod that fails again and again is repaired soon after its cause has gone."""


class Backoff:
    """Doubles from `first` to `longest`, in seconds, with jitter so that pods do not keep step."""

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
        """Start again at `first`: the last try succeeded, or something has changed since."""
        self._next = self._first
