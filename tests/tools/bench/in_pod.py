"""Rules and routes in a pod: our way, the peers' ways, and the floor, in turns."""

import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from subprocess import run

from nodeagent.config import Settings
from nodeagent.linux import syscalls as kernel
from nodeagent.mesh.pod import Pod as MeshPod
from nodeagent.mesh.pod import PodUID
from nodeagent.redirect import in_pod
from nodeagent.redirect.defaults import RedirectDefaults
from nodeagent.redirect.rules import RedirectSpec
from tests.lab.pod import call_in_thread
from tests.tools.bench.floor import Floor
from tests.tools.bench.forked import iptables_and_ip, nft_and_ip
from tests.tools.bench.node import Node
from tests.tools.bench.report import Figure, median, milliseconds

_FASTER_THAN_FORKS = 3
_WITHIN_FLOOR = 4
_RULES_OF_A_FAMILY = 18  # twelve of redirection.md, and six jumps

Times = dict[str, list[float]]


def figures(node: Node, rounds: int) -> list[Figure]:
    """Take each way once a round, each in a namespace of its own: noise hits all alike."""
    spec = default_spec()
    # One thread for all, as the agent keeps its own: a new one has no memory of its own yet.
    times = call_in_thread(partial(_measure, node, spec, rounds))
    middle = {way: median(taken) for way, taken in times.items()}
    ours = middle["ensure"]
    forks, floor = middle["nft"] / ours, ours / middle["floor"]
    return [
        Figure(what="in-pod set-up: rules and routes", value=milliseconds(ours), ratio="1"),
        Figure(
            what="the same by forking `nft -f` and `ip -batch`",
            value=milliseconds(middle["nft"]),
            ratio=f"{forks:.1f} times set-up",
            aim=f"≥ {_FASTER_THAN_FORKS} times",
            met=forks >= _FASTER_THAN_FORKS,
        ),
        Figure(
            what="the same by `iptables-restore` twice and `ip -batch`",
            value=milliseconds(middle["iptables"]),
            ratio=f"{middle['iptables'] / ours:.1f} times set-up",
        ),
        Figure(
            what="the raw netlink batch (floor)",
            value=milliseconds(middle["floor"]),
            ratio=f"set-up is {floor:.1f} times the floor",
            aim=f"≤ {_WITHIN_FLOOR} times",
            met=floor <= _WITHIN_FLOOR,
        ),
        *(
            Figure(
                what=what,
                value=milliseconds(middle[way]),
                ratio=f"{middle[way] / ours:.2f} times set-up",
            )
            for way, what in (
                ("again", "unchanged second set-up"),
                ("inspect", "inspection"),
                ("remove", "removal"),
            )
        ),
    ]


def _measure(node: Node, spec: RedirectSpec, rounds: int) -> Times:
    floor = _warm_up(node, spec)
    ways: dict[str, Callable[[], object]] = {
        "ensure": partial(in_pod.ensure, spec),
        "nft": partial(nft_and_ip, spec),
        "iptables": partial(iptables_and_ip, spec),
        "floor": floor.send,
    }
    after: dict[str, Callable[[], object]] = {
        "again": partial(in_pod.ensure, spec),
        "inspect": partial(in_pod.inspect, spec),
        "remove": in_pod.remove,
    }
    times: Times = defaultdict(list)
    for _ in range(rounds):
        for way, work in ways.items():
            _enter_new(node)
            times[way].append(_timed(work))
            _check(_fault(way, spec), way)
            if way == "ensure":
                for name, work_after in after.items():
                    times[name].append(_timed(work_after))
    return times


def _warm_up(node: Node, spec: RedirectSpec) -> Floor:
    """Have the agent's caches filled and the kernel's modules loaded, as on any node."""
    _enter_new(node)
    iptables_and_ip(spec)
    _enter_new(node)
    in_pod.ensure(spec)
    in_pod.ensure(spec)
    return Floor.of_current(spec)


def _enter_new(node: Node) -> None:
    (pod,) = node.pods(1)
    kernel.setns(pod.netns.fd, kernel.CLONE_NEWNET)


def _fault(way: str, spec: RedirectSpec) -> str:
    """What is wrong with what stands after `way`; empty where nothing is."""
    if way != "iptables":
        return "; ".join(in_pod.inspect(spec))
    counts = [_saved_rules("iptables-save"), _saved_rules("ip6tables-save")]
    return "" if counts == [_RULES_OF_A_FAMILY] * 2 else f"{counts} rules"


def _saved_rules(program: str) -> int:
    listing = run([program], capture_output=True, text=True, check=True).stdout
    return listing.count("\n-A ")


def _check(fault: str, way: str) -> None:
    if fault:
        raise AssertionError(f"{way} did something else: {fault}")


def _timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def default_spec() -> RedirectSpec:
    """What a pod without annotations gets."""
    pod = MeshPod(uid=PodUID("any"), name="any", namespace="any")
    return RedirectDefaults.from_settings(Settings()).of(pod)[0]
