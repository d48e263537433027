"""What work in one pod's network namespace has cost lately, and what follows from that.

A pod with NET_ADMIN decides how long a look at its rules takes. So each namespace has an
account: the seconds that its jobs kept a thread, of which some are forgiven each second.
From what has not been forgiven follows which lane its next job takes, and when it may
begin.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much of the threads' time each namespace may take. An ordinary look takes 2 ms."""

    cheap: float = 0.5
    """Seconds; a namespace that has cost more shares a lane with its like."""
    allowance: float = 3.0
    """Seconds; one that has cost more rests until it has been forgiven enough."""
    forgiven: float = 0.01
    """Seconds in each second: 0.6 a minute, 40 times what an ordinary pod takes."""
    longest_rest: float = 60.0
    """Seconds; as long as an enrolled pod waits for its next look anyway."""


NO_LIMITS = Limits(cheap=math.inf, allowance=math.inf)
"""For the host's own namespace, in which no pod decides how long something takes."""


class Account:
    """The costs of one namespace."""

    __slots__ = ("_at", "_clock", "_limits", "_spent")

    def __init__(self, limits: Limits, clock: Callable[[], float]) -> None:
        """`clock` gives seconds."""
        self._limits = limits
        self._clock = clock
        self._spent = 0.0
        self._at = clock()

    def charge(self, seconds: float) -> None:
        """Note what a job has cost; more than what the longest rest forgives is waived."""
        limits = self._limits
        most = limits.allowance + limits.longest_rest * limits.forgiven
        self._spent, self._at = min(self.spent + seconds, most), self._clock()

    @property
    def spent(self) -> float:
        """Seconds that were not forgiven yet."""
        forgiven = (self._clock() - self._at) * self._limits.forgiven
        return max(0.0, self._spent - forgiven)

    @property
    def cheap(self) -> bool:
        """Whether its next job may run beside those of ordinary pods."""
        return self.spent <= self._limits.cheap

    @property
    def rest(self) -> float:
        """Seconds for which its next job has to wait."""
        return max(0.0, (self.spent - self._limits.allowance) / self._limits.forgiven)
