"""Redirection that somebody else changes, and the agent that keeps it true. Needs: `nft`, `ip`."""

import asyncio
import contextlib
import json
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import nftables
from pyroute2.netlink.rtnl import RTM_NEWRULE

from nodeagent.linux.netlink import NLM_F_CREATE, Netlink
from nodeagent.netfilter.rule import Family
from nodeagent.redirect.in_pod import inspect
from nodeagent.redirect.routes import PolicyRule
from tests.agent.processes import Node
from tests.agent.test_life import wanted
from tests.agent.ztunnels import reconnected
from tests.eventually import PATIENCE, eventually
from tests.lab.apps import echo_app
from tests.lab.lab import Lab
from tests.lab.pod import Pod
from tests.lab.standin import answering
from tests.zds.model import ModelZtunnel

NAT, MANGLE = "inet istio-ambient-nat", "inet istio-ambient-mangle"
FIGHT = 2.0
"""Seconds."""
APP = 8080
CONTESTED = "something else keeps changing the pod's redirection"


async def enrolled(node: Node, ztunnels: list[ModelZtunnel], *pods: Pod) -> None:
    """Start the agent with `pods`, and wait until its own news of the set-up is over."""
    for pod in pods:
        node.write(pod)
    node.start()
    await reconnected(node, ztunnels)
    for pod in pods:
        await node.until_state(pod, "enrolled")


def repairs(node: Node, pod: Pod) -> int:
    row = node.row(pod)
    assert row is not None
    count: int = row["repairs"]
    return count


def right(node: Node, pod: Pod) -> bool:
    return pod.run(lambda: inspect(wanted(node))) == ()


def nft(pod: Pod, *commands: str) -> None:
    """Do `commands` one after the other, without the time that starting programs takes."""

    def work() -> None:
        library = nftables.Nftables()
        for command in commands:
            code, _, errors = library.cmd(command)
            assert code == 0, errors

    pod.run(work)


def shell(*commands: str) -> Callable[[Pod], object]:
    return lambda pod: pod.shell(*commands)


def delete_a_rule(pod: Pod) -> None:
    listing = pod.shell(f"nft -a list chain {NAT} istio-output")
    handle = next(line.split()[-1] for line in listing.splitlines() if ":15001" in line)
    pod.shell(f"nft delete rule {NAT} istio-output handle {handle}")


def change_a_priority(pod: Pod) -> None:
    text = pod.shell(f"nft list table {NAT}")
    changed = text.replace("hook output priority -100", "hook output priority 50")
    assert changed != text
    pod.shell("nft -f -", stdin=f"delete table {NAT}\n{changed}")


DAMAGES: dict[str, tuple[Callable[[Pod], object], str]] = {
    "rule": (delete_a_rule, "istio-output: 9 rules instead of 10"),
    "chain": (shell(f"nft flush chain {NAT} istio-prerouting"), "0 rules instead of"),
    "table": (shell(f"nft delete table {MANGLE}"), "istio-ambient-mangle is missing"),
    "ruleset": (shell("nft flush ruleset"), "rules are missing"),
    "foreign": (shell(f"nft insert rule {NAT} istio-output accept"), "11 rules instead of 10"),
    "priority": (change_a_priority, "hook, priority"),
    "policy4": (shell("ip rule del pref 32764"), "policy rule for IPv4 is missing"),
    "policy6": (shell("ip -6 rule del pref 32764"), "policy rule for IPv6 is missing"),
    "route4": (shell("ip route flush table 100"), "local route for IPv4 is missing"),
    "route6": (shell("ip -6 route flush table 100"), "local route for IPv6 is missing"),
    "taken4": (
        shell("ip route replace unreachable default table 100"),
        "policy rule for IPv4 in table 15100 is missing",
    ),
    "taken6": (
        shell("ip -6 rule add from 2001:db8::1 lookup 100"),
        "policy rule for IPv6 in table 15100 is missing",
    ),
}
"""What is done to a pod, and how the agent tells of it; named after the pod that it is done to."""


async def test_every_change_is_mended_at_once(
    lab: Lab, node: Node, ztunnels: list[ModelZtunnel]
) -> None:
    """L1: whatever is changed is put right at once; status counts it and says when.

    The pods' own looks are an hour apart in these agents: what comes sooner was heard.
    """
    pods = {name: lab.add_pod(name) for name in DAMAGES}
    await enrolled(node, ztunnels, *pods.values())
    assert not any(repairs(node, pod) for pod in pods.values())
    for name, (damage, _) in DAMAGES.items():
        pod, started = pods[name], time.time()
        damage(pod)
        try:
            await eventually(lambda pod=pod: repairs(node, pod) == 1)  # type: ignore[misc]
        except TimeoutError:
            raise AssertionError(f"{name} is not repaired") from None
        row = node.row(pod)
        assert row is not None
        assert row["verified"] >= started
        assert right(node, pod), name
    said = {line["pod"]: line["differed"] for line in log_lines(node, "redirection repaired")}
    for name, (_, words) in DAMAGES.items():
        assert words in "; ".join(said[f"shop/{name}"])


async def test_a_second_policy_rule_goes(
    lab: Lab, node: Node, ztunnels: list[ModelZtunnel]
) -> None:
    """A duplicate of the policy rule is taken out, and the one that is needed stays."""
    web = lab.add_pod("web")
    await enrolled(node, ztunnels, web)
    web.run(double_the_policy_rule)
    await node.until(web, lambda row: row["repairs"] == 1)
    assert web.shell("ip rule").count("lookup 100") == 1


def double_the_policy_rule() -> None:
    class Twice(Netlink):
        def request(self, kind: int, _flags: int, body: bytes) -> None:
            assert kind == RTM_NEWRULE
            super().request(kind, NLM_F_CREATE, body)

    with Twice(socket.NETLINK_ROUTE) as netlink:
        PolicyRule(Family.V4).add(netlink)


def log_lines(node: Node, event: str) -> list[dict[str, Any]]:
    lines = map(json.loads, node.log.read_text().splitlines())
    return [line for line in lines if line["event"] == event]


@contextlib.asynccontextmanager
async def repeating(function: Callable[[], object]) -> AsyncIterator[None]:
    """Call `function` again and again in a thread, and raise what it raises."""
    over = threading.Event()

    def work() -> None:
        while not over.is_set():
            function()

    working = asyncio.create_task(asyncio.to_thread(work), name="repeating")
    try:
        yield
    finally:
        over.set()
        await working


async def test_a_mend_leaves_no_gap(lab: Lab, node: Node, ztunnels: list[ModelZtunnel]) -> None:
    """While the rules are put right again and again, not one connection gets past ztunnel."""
    web, other = lab.add_pod("web"), lab.add_pod("other")
    answers: Counter[str] = Counter()

    def dial() -> None:
        # One that got past is cut off by the next mend: the server tells of it.
        with contextlib.suppress(OSError), socket.socket() as sock:
            sock.settimeout(PATIENCE)
            sock.connect((str(other.v4), APP))
            answers[sock.recv(100).decode().partition(" ")[0]] += 1

    async with answering(web, 4, 15001), echo_app(other, other.v4, APP) as app:
        await asyncio.to_thread(web.run, dial)  # not redirected yet
        await enrolled(node, ztunnels, web)
        async with repeating(lambda: web.run(dial)):
            for count in range(1, 8):
                nft(web, f"flush chain {MANGLE} istio-prerouting")
                await eventually(lambda count=count: repairs(node, web) >= count)  # type: ignore[misc]
            await eventually(lambda: answers["ztunnel:15001"] > 20)
    assert answers["app"] == len(app.peers) == 1, "got past ztunnel"


async def test_a_fight_holds_nobody_up(lab: Lab, node: Node, ztunnels: list[ModelZtunnel]) -> None:
    """One pod flushes its rules in a loop: another's mend is prompt, the agent's work bounded."""
    fighter, other = lab.add_pod("fighter"), lab.add_pod("other")
    await enrolled(node, ztunnels, fighter, other)
    used, started = processor_seconds(node), time.monotonic()
    async with repeating(lambda: nft(fighter, "flush ruleset")):
        await asyncio.sleep(FIGHT / 2)
        delete_a_rule(other)
        await eventually(lambda: repairs(node, other) == 1)
        await eventually(lambda: bool(log_lines(node, CONTESTED)))
        await asyncio.sleep(started + FIGHT - time.monotonic())
        used, taken = processor_seconds(node) - used, time.monotonic() - started
    assert used < 0.3 * taken
    contested = log_lines(node, CONTESTED)
    assert {line["pod"] for line in contested} == {"shop/fighter"}
    assert len(contested) <= 2, "told again and again"
    await eventually(lambda: right(node, fighter))
    assert repairs(node, other) == 1


def processor_seconds(node: Node) -> float:
    with open(f"/proc/{node.process.pid}/stat", encoding="ascii") as stat:
        fields = stat.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def test_a_pods_own_rules_are_its_own(
    lab: Lab, node: Node, ztunnels: list[ModelZtunnel]
) -> None:
    """A pod that keeps changing rules of its own costs looks, and is not mended."""
    web = lab.add_pod("web")
    await enrolled(node, ztunnels, web)
    before = node.row(web)
    assert before is not None
    own = ("add table inet own", "add chain inet own c", "delete table inet own")
    async with repeating(lambda: nft(web, *own)):
        await node.until(web, lambda row: row["verified"] > before["verified"])
        looked = node.row(web)
        assert looked is not None
        await node.until(web, lambda row: row["verified"] > looked["verified"])
        assert repairs(node, web) == 0
        delete_a_rule(web)
        await eventually(lambda: repairs(node, web) == 1)
    assert right(node, web)


async def test_changes_while_the_agent_is_away(
    lab: Lab, node: Node, ztunnels: list[ModelZtunnel]
) -> None:
    """L1: what was changed while no agent ran is mended by the next at its start."""
    pods = {name: lab.add_pod(name) for name in ("rule", "ruleset", "policy6", "route4", "quiet")}
    await enrolled(node, ztunnels, *pods.values())
    await node.kill()
    for name, pod in pods.items():
        if name in DAMAGES:
            DAMAGES[name][0](pod)
            assert not right(node, pod), name
    node.start()
    await reconnected(node, ztunnels)
    for pod in pods.values():
        await node.until_state(pod, "enrolled")
        assert right(node, pod)


async def test_a_table_that_a_process_keeps(
    lab: Lab, node: Node, ztunnels: list[ModelZtunnel]
) -> None:
    """A table of our name with an owner is told of by name; when the owner goes, it is ours."""
    web, other = lab.add_pod("web"), lab.add_pod("other")
    await enrolled(node, ztunnels, web, other)
    owner = web.run(nftables.Nftables)
    assert owner.cmd(f"delete table {NAT}; add table {NAT} {{ flags owner; }}")[0] == 0
    row = await node.until_state(web, "retrying")
    assert "istio-ambient-nat" in row["detail"]
    delete_a_rule(other)
    await eventually(lambda: repairs(node, other) == 1)
    del owner
    await node.until_state(web, "enrolled")
    assert right(node, web)
