"""Whatever others do with a pod's routing: nothing of theirs is changed, replies find a way."""

import re
import subprocess
from collections import Counter
from collections.abc import Callable
from itertools import product

from hypothesis import given, settings
from hypothesis import strategies as st

from nodeagent.redirect.in_pod import ensure, inspect, remove
from tests.lab.lab import Lab
from tests.lab.pod import Pod
from tests.lab.spec import spec

TABLES = (100, 15100, 15101)
CONDITIONS = (
    "from 192.0.2.1 pref 500",
    "fwmark 1 pref 600",
    "fwmark 0x111/0xfff pref 99",
    "iif eth0 fwmark 0x111/0xfff pref 32764",
    "iif eth0 fwmark 0x111/0xfff pref 32764 protocol boot",
    "tos 8 fwmark 0x111/0xfff pref 32764",
    "fwmark 0x111/0xffff pref 32764",
)
ROUTES = (
    "unreachable default metric 9",
    "default via 10.88.0.1 dev eth0",
    "198.51.100.0/24 dev eth0",
    "local 198.51.101.0/24 dev lo",
    "local default dev lo metric 5",
    "local default dev lo metric 6 protocol 111",
)
COMMANDS = [
    *(
        f"rule {verb} {what} lookup {table}"
        for verb, what, table in product(("add", "del"), CONDITIONS, TABLES)
    ),
    # To the kernel's mind one rule is like another that is the other way round: only added.
    *(f"rule add not fwmark 0x111/0xfff pref 32764 lookup {table}" for table in TABLES),
    *(
        f"route {verb} {what} table {table}"
        for verb, what, table in product(("add", "del"), ROUTES, TABLES)
    ),
]
OURS = re.compile(
    r"32764:\tfrom all fwmark 0x111/0xfff lookup \d+ proto unspec"
    r"|local default dev lo table (?P<table>\d+) proto 111 scope host"
)
WANTED = spec(ipv6=False)


def entries(pod: Pod) -> list[str]:
    listing = pod.shell("ip -d rule") + pod.shell("ip -d route show table all")
    return [line.strip() for line in listing.splitlines()]


def others(pod: Pod) -> Counter[str]:
    return Counter(line for line in entries(pod) if not OURS.fullmatch(line))


def our_tables(pod: Pod) -> list[str]:
    """The tables with a local route of ours."""
    found = filter(None, map(OURS.fullmatch, entries(pod)))
    return [match["table"] for match in found if match["table"]]


def stranger(command: str) -> Callable[[Pod], None]:
    """What another program does; the kernel may refuse it."""

    def work(pod: Pod) -> None:
        program = ["ip", *command.split()]
        pod.run(lambda: subprocess.run(program, stderr=subprocess.DEVNULL, check=False))

    work.__name__ = command
    return work


def enroll(pod: Pod) -> None:
    before = others(pod)
    pod.run(lambda: ensure(WANTED))
    assert others(pod) == before
    assert sum(map(bool, map(OURS.fullmatch, entries(pod)))) == 2
    assert pod.run(lambda: inspect(WANTED)) == ()
    assert pod.run(lambda: ensure(WANTED)) == ()


def leave(pod: Pod) -> None:
    before, proven = others(pod), bool(pod.shell("nft list tables") or our_tables(pod))
    pod.run(remove)
    assert others(pod) == before
    # A policy rule that leads nowhere stays where others have taken all that was beside it.
    assert not proven or not any(map(OURS.fullmatch, entries(pod)))


def lose_the_rules(pod: Pod) -> None:
    """Or an agent that is killed half-way through a removal."""
    pod.shell("nft flush ruleset")


def lose_the_route(pod: Pod) -> None:
    for table in our_tables(pod):
        pod.shell(f"ip route del local default dev lo table {table} metric 0")


STEPS = st.one_of(
    st.sampled_from(COMMANDS).map(stranger),
    st.sampled_from((enroll, leave, lose_the_rules, lose_the_route)),
)


@settings(max_examples=25)
@given(st.lists(STEPS, max_size=15))
def test_every_history(steps: list[Callable[[Pod], None]]) -> None:
    """L30, L42: over all histories, also with rules that the kernel takes for ours."""
    with Lab() as lab:
        pod = lab.add_pod("pod", ipv6=False)
        for step in (*steps, enroll, leave):
            step(pod)
