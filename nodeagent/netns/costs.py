"""What the agent's work in one pod's netns has cost lately, and what follows from that.

A pod with NET_ADMIN decides how long it takes to read the pod's rules. So each netns has an
account of two costs: the seconds for which its jobs held a thread, and the seconds of the
processor that they used. Of both, some are forgiven each second.

A netns whose jobs held threads for long gets a lane with others like it. That does no harm
even where the kernel or a busy machine is to blame. A netns whose jobs used the processor for
long gets no job for some time. A busy machine alone does not lead to that, because jobs that
wait use no processor.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Self


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much each netns may take. To inspect an ordinary pod's rules takes 2 ms of either."""

    cheap: float = 1.0
    """Seconds of a thread; a netns that has held one for longer takes the other lane."""
    allowance: float = 1.0
    """Seconds of the processor; a netns that has used more is refused until enough is forgiven."""
    forgiven: float = 0.01
    """Seconds in each second: 0.6 a minute, 40 times what an ordinary pod takes."""
    longest_rest: float = 60.0
    """Seconds; an enrolled pod is verified as often anyway."""


NO_LIMITS = Limits(cheap=math.inf, allowance=math.inf)
"""For the host's netns, in which no pod decides how long something takes."""


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
    """The costs of one netns."""

    __slots__ = ("_clock", "_held", "_limits", "_since", "_used")

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` gives seconds."""
        self._limits = limits
        self._clock = clock
        self._held = 0.0
        self._used = 0.0
        self._since = clock()

    def charge(self, cost: Cost) -> None:
        """Add what a job has cost, up to what `longest_rest` forgives."""
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
        """Whether the next job may take the lane of ordinary pods."""
        self._forgive()
        return self._held <= self._limits.cheap

    @property
    def rest(self) -> float:
        """Seconds for which no job may begin."""
        self._forgive()
        return max(0.0, (self._used - self._limits.allowance) / self._limits.forgiven)

    def _forgive(self) -> None:
        now = self._clock()
        forgiven = (now - self._since) * self._limits.forgiven
        self._held, self._used = max(0.0, self._held - forgiven), max(0.0, self._used - forgiven)
        self._since = now
