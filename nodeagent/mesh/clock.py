"""How long the enrollment of one pod takes, from the news that caused it."""

import time

from nodeagent.observer import Observer, Phase, Way


class EnrollmentClock:
    """Tells an observer when one enrollment reaches each phase, and when it is complete.

    Runs of the steps are repeated, so everything is told the first time only.
    """

    __slots__ = ("_complete", "_reached", "_way", "began")

    def __init__(self, way: Way, began: float) -> None:
        """`began`: when the agent heard of what is to be enrolled; ``time.monotonic``."""
        self.began = began
        self._way = way
        self._reached: set[Phase] = set()
        self._complete = False

    def reached(self, phase: Phase, observer: Observer) -> None:
        """The steps have come so far."""
        if phase not in self._reached:
            self._reached.add(phase)
            observer.enrollment_reached(phase, self._way, time.monotonic() - self.began)

    def complete(self, observer: Observer) -> None:
        """The pod is enrolled and served."""
        if not self._complete:
            self._complete = True
            observer.enrolled(self._way, time.monotonic() - self.began)
