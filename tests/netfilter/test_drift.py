"""Hearing of changes in a real netns."""

import asyncio
from collections.abc import Callable
from socket import socket

import pytest

from nodeagent.netfilter.drift import DriftWatch, open_rule_sockets, open_sockets
from tests.lab.pod import Pod

RULE = "nft add table inet strangers"
ROUTE = "ip route add local 198.51.100.1 dev lo table 7"
POLICY_RULE = "ip rule add fwmark 0x7 lookup 7"


async def heard(pod: Pod, opened: Callable[[], tuple[socket, ...]], *commands: str) -> int:
    """How often a watch calls back when `commands` run one after the other."""
    called = 0
    quiet = asyncio.Event()

    def on_drift() -> None:
        nonlocal called
        called += 1

    watch = DriftWatch(pod.run(opened), on_drift)
    try:
        watch.arm()
        pod.shell(*commands)
        # What the kernel has announced by now is read before this is called: both are callbacks
        # of the event loop, and a reader that is ready goes first.
        for _ in range(3):
            asyncio.get_running_loop().call_soon(quiet.set)
            await quiet.wait()
            quiet.clear()
    finally:
        watch.close()
    return called


@pytest.mark.parametrize("command", [RULE, ROUTE, POLICY_RULE])
async def test_every_change_is_heard_once(pod: Pod, command: str) -> None:
    """A watch that has called is silent until it is armed again, whatever comes then."""
    assert await heard(pod, open_sockets, command, "nft add table inet more") == 1


async def test_routes_are_not_heard_by_who_asks_for_rules(pod: Pod) -> None:
    """The host's routes change all the time, and are nothing to the probe set."""
    assert await heard(pod, open_rule_sockets, ROUTE, POLICY_RULE) == 0
    assert await heard(pod, open_rule_sockets, RULE) == 1


async def test_arming_forgets_what_was_before(pod: Pod) -> None:
    """The agent's own writes lie before the next arming, and are no drift."""
    called = asyncio.Event()
    watch = DriftWatch(pod.run(open_sockets), called.set)
    try:
        pod.shell(RULE)
        watch.arm()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not called.is_set()
        pod.shell("nft delete table inet strangers")
        await called.wait()
    finally:
        watch.close()
