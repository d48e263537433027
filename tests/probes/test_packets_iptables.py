"""The ways of `test_packets` with iptables on the host, and while backends change."""

import asyncio
import contextlib
import subprocess
from collections.abc import AsyncIterator
from ipaddress import ip_address

import pytest

from nodeagent.netfilter.iptables_programs import Variant
from nodeagent.netns.threads import NetnsThreads
from nodeagent.probes.migration import BackendMigration
from tests.lab.apps import ask, echo_app
from tests.lab.host import PROBE_V4, Host, enrolled, uninstall
from tests.lab.ipsets import KINDS, probes_in
from tests.lab.lab import Lab
from tests.lab.pod import Pod
from tests.probes.test_packets import (
    APP,
    PROBE,
    address,
    app_beyond,
    gateway,
    host,
    probed_from,
)

__all__ = ["host"]


@pytest.fixture(params=Variant)
def variant(request: pytest.FixtureRequest) -> Variant:
    return Variant(request.param)


@pytest.fixture
async def probes(variant: Variant, host: Host) -> AsyncIterator[BackendMigration]:
    with contextlib.closing(NetnsThreads(1)) as threads:
        async with probes_in(variant, host, threads) as probes:
            yield probes
            uninstall(host)


async def test_a_probe_is_marked(
    lab: Lab, pod: Pod, other: Pod, probes: BackendMigration, version: int
) -> None:
    """L21: only TCP from the host to an enrolled pod has the probe source."""
    target, outside = address(pod, version), address(other, version)
    async with echo_app(pod, target, APP), echo_app(other, outside, APP):
        assert await probed_from(target) == gateway(lab, version)
        await probes.ensure(enrolled("a", *pod.addresses))
        assert await probed_from(target) == PROBE[version]
        assert await probed_from(outside) == gateway(lab, version)
        await probes.remove(enrolled("a").uid)
        assert await probed_from(target) == gateway(lab, version)


async def test_forwarded_traffic_keeps_its_source(
    pod: Pod, other: Pod, probes: BackendMigration, version: int
) -> None:
    """What a pod sends to an enrolled one through the host still has that pod's address."""
    async with app_beyond(pod, version) as target:
        await probes.ensure(enrolled("a", target))
        assert ip_address((await ask(other, target, APP))[1]) == address(other, version)
        assert await probed_from(target) == PROBE[version]


async def test_a_masquerade_that_comes_first_loses_its_place(
    pod: Pod, probes: BackendMigration, variant: Variant, version: int
) -> None:
    """L20: at the next start our jump is first again."""
    program = "iptables" if version == 4 else "ip6tables"
    target = address(pod, version)
    await probes.ensure(enrolled("a", target))
    rule = ["POSTROUTING", "-p", "tcp", "-j", "MASQUERADE"]
    nat(f"{program}-{variant}", "-I", *rule)
    try:
        await probes.start()
        async with echo_app(pod, target, APP):
            assert await probed_from(target) == PROBE[version]
    finally:
        nat(f"{program}-{variant}", "-D", *rule)


def nat(program: str, *arguments: str) -> None:
    subprocess.run([program, "-t", "nat", *arguments], check=True)


async def test_no_probe_slips_by_while_the_backend_changes(pod: Pod, host: Host) -> None:
    """L8: through every move from one backend to the next, each probe is marked."""
    pods = [enrolled("a", *pod.addresses)]
    moved = asyncio.Event()
    with contextlib.closing(NetnsThreads(1)) as threads:

        async def move() -> None:
            for kind in (*KINDS, *KINDS):
                async with probes_in(kind, host, threads) as probes:
                    await probes.start()
                    await probes.ensure(pods[0])
                    await probes.prune(pods)
            moved.set()

        async with probes_in(KINDS[-1], host, threads) as first:
            await first.ensure(pods[0])
        seen = []
        async with echo_app(pod, pod.v4, APP), asyncio.TaskGroup() as tasks:
            tasks.create_task(move())
            while not moved.is_set():
                seen.append(await probed_from(pod.v4))
        uninstall(host)
    assert len(seen) > 10
    assert set(seen) == {PROBE_V4}
