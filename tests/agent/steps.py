"""SIGKILL between any two steps: every point at which the agent changes something outside."""

import functools
import os
import signal
import socket
from collections.abc import Callable
from typing import Any

from nodeagent.cluster.log_reporter import LogReporter
from nodeagent.netfilter import nft_batch as batch
from nodeagent.netns.verify import Verifier
from nodeagent.probes.host_probes import HostProbes
from nodeagent.redirect import in_pod as pod
from nodeagent.zds.connection import Connection

_POINTS: tuple[tuple[Any, str], ...] = (
    (Verifier, "verify"),
    (pod, "add_entry"),
    (pod, "mark_entry"),
    (pod, "remove_entry"),
    (batch, "replace"),
    (batch, "remove"),
    (socket.socket, "sendmsg"),
    (Connection, "receive"),
    (HostProbes, "ensure"),
    (HostProbes, "remove"),
    (LogReporter, "report"),
)


def die_after(count: int) -> None:
    """Kill this process, without a word, right after the `count`-th step."""
    taken = 0

    def step() -> None:
        nonlocal taken
        taken += 1
        if taken == count:
            os.kill(os.getpid(), signal.SIGKILL)

    for owner, name in _POINTS:
        setattr(owner, name, _counted(getattr(owner, name), step))


def _counted(function: Callable[..., Any], step: Callable[[], None]) -> Callable[..., Any]:
    @functools.wraps(function)
    def then_step(*args: Any, **options: Any) -> Any:
        result = function(*args, **options)
        if not hasattr(result, "__await__"):
            step()
            return result

        async def finish() -> Any:
            value = await result
            step()
            return value

        return finish()

    return then_step
