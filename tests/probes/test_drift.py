"""The watch over the host's rules by itself: what a check raises does not end it."""

import asyncio

import pytest
from structlog.testing import capture_logs

from nodeagent.netns.netns import Netns
from nodeagent.netns.threads import NetnsThreads
from nodeagent.observer import Observer
from nodeagent.probes.drift import ProbeWatch
from nodeagent.probes.host_probes import Check, HostProbesError
from tests.eventually import eventually


@pytest.mark.parametrize("fault", [HostProbesError("busy"), RuntimeError("ours")], ids=repr)
async def test_a_check_that_fails_is_made_again(threads: NetnsThreads, fault: Exception) -> None:
    """Every pod depends on the agent, which a fault in this check must not end."""
    checks = 0

    async def check() -> Check:
        nonlocal checks
        checks += 1
        if checks < 4:
            raise fault
        return Check((), 0.0)

    looks: list[bool] = []

    class Heard(Observer):
        def host_checked(self, in_order: bool) -> None:
            looks.append(in_order)

    with Netns.current() as host, capture_logs() as log:
        watch = ProbeWatch(threads, host, check, poll=0.01, observer=Heard())
        watching = asyncio.create_task(watch.run())
        await eventually(lambda: checks >= 4 or watching.done())
        assert not watching.done()
        watching.cancel()
        await asyncio.wait([watching])
    assert len([line for line in log if line["log_level"] in {"warning", "error"}]) == 1
    assert looks[:3] == [False] * 3
    assert all(looks[3:])
