"""How long to wait before calling the agent again."""

FIRST_DELAY = 0.01
LONGEST_DELAY = 15.0
"""Seconds: ztunnel's own numbers."""


class Backoff:
    """Doubles with every call, up to the longest delay."""

    __slots__ = ("_delay",)

    def __init__(self) -> None:
        self._delay = FIRST_DELAY

    def next(self) -> float:
        """Seconds to wait this time."""
        delay = self._delay
        self._delay = min(delay * 2, LONGEST_DELAY)
        return delay

    def reset(self) -> None:
        """Start again with the first delay."""
        self._delay = FIRST_DELAY
