"""What work in one pod's network namespace has cost lately, and what follows from that.

A pod with NET_ADMIN decides how long a look at its rules takes. So each namespace has an
account: the seconds for which its jobs held a thread, and those of the processor that
they used, of which some are forgiven each second. Who holds threads for long shares a
lane with its like: that harms nobody, though it may be the kernel's or the machine's
fault. Who uses the processor for long is refused for some time: a pod that only waits
for a busy machine is not.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Self


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much each namespace may take. An ordinary look takes 2 ms of either."""

    cheap: float = 1.0
    """Seconds of a thread; a namespace that has held one for longer takes the other lane."""
    allowance: float = 1.0
    """Seconds of the processor; one that has used more is refused until enough is forgiven."""
    forgiven: float = 0.01
    """Seconds in each second: 0.6 a minute, 40 times what an ordinary pod takes."""
    longest_rest: float = 60.0
    """Seconds; as long as an enrolled pod waits for its next look anyway."""


NO_LIMITS = Limits(cheap=math.inf, allowance=math.inf)
"""For the host's own namespace, in which no pod decides how long something takes."""


class Cost(NamedTuple):
    """Seconds of a thread, and of the processor."""

    held: float
    used: float

    @classmethod
    def so_far(cls) -> Self:
        """What the calling thread has cost since some moment; for comparison with later."""
        return cls(time.monotonic(), time.thread_time())

    def since(self, before: "Cost") -> "Cost":
        """What has been added since `before`."""
        return Cost(self.held - before.held, self.used - before.used)


class Account:
    """The costs of one namespace."""

    __slots__ = ("_clock", "_held", "_limits", "_since", "_used")

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` gives seconds."""
        self._limits = limits
        self._clock = clock
        self._held = 0.0
        self._used = 0.0
        self._since = clock()

    def charge(self, cost: Cost) -> None:
        """Note what a job has cost; what the longest rest would not forgive is waived."""
        self._forgive()
        longest = self._limits.longest_rest * self._limits.forgiven
        self._held = min(self._held + cost.held, self._limits.cheap + longest)
        self._used = min(self._used + cost.used, self._limits.allowance + longest)

    @property
    def settled(self) -> bool:
        """Whether everything is forgiven."""
        self._forgive()
        return self._held == self._used == 0

    @property
    def cheap(self) -> bool:
        """Whether its next job may run beside those of ordinary pods."""
        self._forgive()
        return self._held <= self._limits.cheap

    @property
    def rest(self) -> float:
        """Seconds for which no job of it may begin."""
        self._forgive()
        return max(0.0, (self._used - self._limits.allowance) / self._limits.forgiven)

    def _forgive(self) -> None:
        now = self._clock()
        forgiven = (now - self._since) * self._limits.forgiven
        self._held, self._used = max(0.0, self._held - forgiven), max(0.0, self._used - forgiven)
        self._since = now
