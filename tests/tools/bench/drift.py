"""Redirection that somebody else changes: how soon it is repaired, and what watching costs."""

import errno
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from subprocess import run
from typing import TypeVar

import nftables

from nodeagent.linux import syscalls as kernel
from nodeagent.linux.netlink import Netlink
from nodeagent.netfilter.rule import Family
from nodeagent.redirect.routes import PolicyRule, parse_rule, read_rules
from tests.eventually import PATIENCE
from tests.lab.pod import call_in_thread
from tests.tools.bench.node import Node, Pod
from tests.tools.bench.programs import Agent
from tests.tools.bench.report import Figure, median, milliseconds, percentile99
from tests.tools.bench.ztunnel import PlainZtunnel

T = TypeVar("T")

_NAT = "inet istio-ambient-nat"
_MEDIAN_AIM = 0.050
_FIGHT_AIM = 0.25
"""Of one core."""
_OUTSIDE = ("203.0.113.1", 80)
# What goes there and is not redirected vanishes, without anybody who would have to answer.
_WAY_OUT = """\
link add out0 type veth peer name out1
link set out0 arp off up
link set out1 arp off up
addr add 192.0.2.1/32 dev out0
route add default dev out0
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """How much is measured."""

    present: int
    samples: int
    """Of each damage, each in another pod: one after the other in one pod is a fight."""
    seconds: float
    """For which the agent is watched."""


@dataclass(frozen=True, slots=True)
class Repair:
    """One damage."""

    seconds: float
    slipped: int
    """Connections that left the pod meanwhile."""


def figures(node: Node, counts: Counts) -> Iterator[Figure]:
    """All of them, from one agent with all its pods."""
    pods = node.pods(counts.present)
    for pod in pods:
        _inside(pod, _add_way_out)
    with Agent(node) as agent, PlainZtunnel(agent) as ztunnel:
        empty = agent.settled()
        node.stage(pods)
        node.move_in(pods)
        ztunnel.accept_all([pod.uid() for pod in pods])
        full = agent.settled()
        yield Figure(
            what="the watch and all else the agent keeps of a pod",
            value=f"{(full.resident - empty.resident) / counts.present / 1024:.1f} KiB, "
            f"{(full.descriptors - empty.descriptors) / counts.present:.1f} descriptors",
        )
        used = agent.share(counts.seconds)
        yield Figure(
            what=f"the agent's processor time, {counts.present} quiet pods",
            value=f"{used:.1%} of a core over {counts.seconds:g} s",
            aim="unmeasurable (< 1 %)",
            met=used < 0.01,
        )
        left = iter(pods)
        for what, damage in (
            ("a deleted rule", _rule_deleted),
            ("a flushed table", _table_flushed),
            ("a deleted policy rule", _policy_rule_deleted),
        ):
            repairs = [_inside(next(left), damage) for _ in range(counts.samples)]
            yield _repair_figure(f"repair of {what}, {counts.present} present", repairs)
        with _fighting(next(left)):
            used = agent.share(counts.seconds)
            repairs = [_inside(next(left), _rule_deleted) for _ in range(counts.samples)]
        yield Figure(
            what="the agent's processor time while one pod flushes its rules in a loop",
            value=f"{used:.1%} of a core over {counts.seconds:g} s",
            aim=f"< {_FIGHT_AIM:.0%}",
            met=used < _FIGHT_AIM,
        )
        yield _repair_figure("repair of a deleted rule in other pods meanwhile", repairs)
        # The next agent has none of them.
        node.delete(pods)
        ztunnel.delete_all([pod.uid() for pod in pods])


def _repair_figure(what: str, repairs: list[Repair]) -> Figure:
    times = [repair.seconds for repair in repairs]
    slipped = [repair.slipped for repair in repairs]
    middle = median(times)
    return Figure(
        what=what,
        value=f"median {milliseconds(middle)}, 99th percentile {milliseconds(percentile99(times))}",
        ratio=f"{median(slipped):g} connections slipped through in the median, "
        f"of a client that dials all the time"
        if any(slipped)
        else "",
        aim=f"median < {milliseconds(_MEDIAN_AIM)}",
        met=middle < _MEDIAN_AIM,
    )


def _rule_deleted() -> Repair:
    library = nftables.Nftables()
    library.set_handle_output(True)
    _, listing, _ = library.cmd(f"list chain {_NAT} istio-output")
    last = next(line for line in listing.splitlines() if ":15001" in line and "ip daddr" in line)
    command = f"delete rule {_NAT} istio-output handle {last.split()[-1]}"
    return _measured(partial(_nft, library, command), _redirected)


def _table_flushed() -> Repair:
    return _measured(partial(_nft, nftables.Nftables(), f"flush table {_NAT}"), _redirected)


def _policy_rule_deleted() -> Repair:
    with Netlink(socket.NETLINK_ROUTE) as netlink:
        rule = PolicyRule(Family.V4)
        repair = _measured(
            partial(rule.remove, netlink),
            lambda: rule in map(parse_rule, read_rules(netlink, Family.V4)),
        )
    return Repair(repair.seconds, 0)


def _measured(damage: Callable[[], object], right: Callable[[], bool]) -> Repair:
    if not right():
        raise AssertionError("not right before the damage")
    damage()
    started = time.perf_counter()
    slipped = 0
    while not right():
        slipped += 1
        if time.perf_counter() - started > PATIENCE:
            raise RuntimeError("never repaired")
    return Repair(time.perf_counter() - started, slipped)


def _redirected() -> bool:
    """Dial once: nobody listens at 15001, so what is redirected is refused before this returns."""
    with socket.socket() as client:
        client.setblocking(False)
        code = client.connect_ex(_OUTSIDE)
        if code == errno.EINPROGRESS:
            code = client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        return code == errno.ECONNREFUSED


@contextmanager
def _fighting(pod: Pod) -> Iterator[None]:
    over = threading.Event()

    def work() -> None:
        kernel.setns(pod.netns.fd, kernel.CLONE_NEWNET)
        library = nftables.Nftables()
        while not over.wait(0.001):
            _nft(library, "flush ruleset")

    fighter = threading.Thread(target=work, name="fighter")
    fighter.start()
    try:
        yield
    finally:
        over.set()
        fighter.join()


def _nft(library: nftables.Nftables, command: str) -> None:
    code, _, errors = library.cmd(command)
    if code != 0:
        raise RuntimeError(f"{command}: {errors}")


def _add_way_out() -> None:
    run(["ip", "-batch", "-"], input=_WAY_OUT.encode(), check=True)


def _inside(pod: Pod, function: Callable[[], T]) -> T:
    def enter() -> T:
        kernel.setns(pod.netns.fd, kernel.CLONE_NEWNET)
        return function()

    return call_in_thread(enter)
