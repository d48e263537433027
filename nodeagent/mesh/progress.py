"""How far a pod is on its way into or out of the mesh.

Only the pod's worker changes this: the steps in `enrollment.py`, and `worker.py` where a
step has failed. Everybody else reads it through `Workload`.
"""

import asyncio
import time
from collections.abc import Callable
from enum import Enum
from typing import Generic

from nodeagent.mesh.clock import EnrollmentClock
from nodeagent.mesh.held import HeldNetns, N
from nodeagent.mesh.history import PodHistory


class State(Enum):
    """Where a pod is on its way; docs/architecture.md says what each means to an operator."""

    NEW = "new"
    OUTSIDE = "outside"
    WAITING = "waiting"
    PENDING = "pending"
    ENROLLED = "enrolled"
    UNSERVED = "unserved"
    LEAVING = "leaving"
    RETRYING = "retrying"
    FAILED = "failed"


class Progress(Generic[N]):
    """A pod's state with its reason, what is held of its netns, and what has been done."""

    __slots__ = (
        "_attempted",
        "attempts",
        "clock",
        "detail",
        "held",
        "history",
        "known_outside",
        "repairs",
        "since",
        "state",
        "was_redirected",
    )

    def __init__(self, history: PodHistory | None = None) -> None:
        """`history`: where every change of the state is noted; None: a new one."""
        self.history = PodHistory() if history is None else history
        self.state = State.NEW
        self.detail = ""
        self.since = time.time()
        """When `state` was set, in seconds since the epoch."""
        self.held: HeldNetns[N] | None = None
        self.clock: EnrollmentClock | None = None
        """Times the enrollment; None: none has begun."""
        self.was_redirected = False
        """This agent has installed the redirection, or found it installed, at least once."""
        self.known_outside = False
        """The pod was taken out of the mesh once, or found to be outside."""
        self.repairs = 0
        """How often something else had changed the redirection, and it was repaired."""
        self.attempts = 0
        """Runs of the steps that are over, however they ended."""
        self._attempted = asyncio.Event()

    def set_state(self, state: State, detail: str) -> bool:
        """Set the state and its reason. Returns whether either has changed."""
        if (state, detail) == (self.state, self.detail):
            return False
        if state is not self.state:
            self.since = time.time()
        self.state, self.detail = state, detail
        self.history.note(state.value, detail)
        return True

    def release_netns(self) -> None:
        """Close what is held of the netns, if anything is."""
        self.clock = None
        held, self.held = self.held, None
        if held is not None:
            held.close()

    def attempt_ended(self) -> None:
        """Count a run of the steps, and wake whoever waits in `until`."""
        self.attempts += 1
        self._attempted.set()
        self._attempted = asyncio.Event()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Return once `condition` holds; it is evaluated after each run of the steps."""
        while not condition():
            await self._attempted.wait()
