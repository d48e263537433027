"""Whose packets get the probe address as their source: real connections from and through a host."""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest

from nodeagent.netns.netns import Netns
from nodeagent.netns.threads import NetnsThreads
from nodeagent.probes.host_probes import HostProbes
from tests.eventually import PATIENCE
from tests.lab.apps import IPAddress, ask, echo_app, family_of
from tests.lab.host import PROBE_V4, PROBE_V6, TABLE, Host, enrolled, probes_of
from tests.lab.lab import Lab, ip_batch
from tests.lab.pod import Pod

APP = 8080
BEYOND: dict[int, IPAddress] = {4: IPv4Address("10.99.0.1"), 6: IPv6Address("fd99::1")}
"""Addresses of a pod that its neighbors reach only through the host."""
PROBE: dict[int, IPAddress] = {4: PROBE_V4, 6: PROBE_V6}
MASQUERADE = """
table {family} foreign {{
    chain postrouting {{
        type nat hook postrouting priority srcnat; policy accept;
        counter masquerade
    }}
}}
"""


@pytest.fixture
def host(lab: Lab) -> Iterator[Host]:
    """Where the lab's bridge is."""
    assert lab is not None
    with Netns.current() as namespace:
        host = Host(namespace)
        yield host
        host.nft("flush ruleset")


@pytest.fixture
async def probes(host: Host) -> AsyncIterator[HostProbes]:
    with contextlib.closing(NetnsThreads(1)) as threads:
        async with probes_of(host, threads) as probes:
            yield probes


def address(pod: Pod, version: int) -> IPAddress:
    return pod.addresses[0 if version == 4 else 1]


def gateway(lab: Lab, version: int) -> IPAddress:
    return lab.gateway_v4 if version == 4 else lab.gateway_v6


async def probed_from(target: IPAddress) -> IPAddress:
    """Connect from the host, as kubelet does; return the source that the app saw."""
    async with asyncio.timeout(PATIENCE):
        reader, writer = await asyncio.open_connection(str(target), APP)
        try:
            seen = (await reader.readuntil()).decode().split()[1]
            writer.write(b"ping\n")
            assert await reader.readuntil() == b"ping\n"
        finally:
            writer.close()
            await writer.wait_closed()
    return ip_address(seen)


async def met(pod: Pod, version: int) -> None:
    """Have the host know `pod` as its neighbor.

    In the first two seconds of its life the bridge has no link-local address,
    and without one it asks for no neighbor on behalf of a packet with a foreign source.
    """
    target = address(pod, version)
    async with echo_app(pod, target, APP):
        await probed_from(target)


async def test_a_probe_is_marked(
    lab: Lab, pod: Pod, host: Host, probes: HostProbes, version: int
) -> None:
    """L21: TCP of any process of the host to an enrolled pod has the probe source, and works."""
    target = address(pod, version)
    async with echo_app(pod, target, APP):
        assert await probed_from(target) == gateway(lab, version)
        await probes.ensure(enrolled("a", *pod.addresses))
        assert await probed_from(target) == PROBE[version]
        assert await probes.ensure(enrolled("a", *pod.addresses)) == ()
        assert "counter packets 1 " in host.nft(f"list table {TABLE}")
        await probes.remove(enrolled("a").uid)
        assert await probed_from(target) == gateway(lab, version)


async def test_a_pod_outside_the_mesh_sees_the_host(
    lab: Lab, pod: Pod, other: Pod, probes: HostProbes, version: int
) -> None:
    """Fail safe: what the host sends to a pod that is not enrolled keeps its source."""
    await probes.ensure(enrolled("a", *pod.addresses))
    target = address(other, version)
    async with echo_app(other, target, APP):
        assert await probed_from(target) == gateway(lab, version)


async def test_datagrams_are_not_probes(
    lab: Lab, pod: Pod, probes: HostProbes, version: int
) -> None:
    """UDP that the host sends to an enrolled pod keeps its source."""
    await probes.ensure(enrolled("a", *pod.addresses))
    target = address(pod, version)
    family = family_of(target)
    loop = asyncio.get_running_loop()
    with (
        pod.socket(family, socket.SOCK_DGRAM) as server,
        socket.socket(family, socket.SOCK_DGRAM) as client,
    ):
        server.bind((str(target), 53))
        client.sendto(b"ping", (str(target), 53))
        async with asyncio.timeout(PATIENCE):
            _, peer = await loop.sock_recvfrom(server, 16)
    assert ip_address(peer[0]) == gateway(lab, version)


async def test_forwarded_traffic_keeps_its_source(
    pod: Pod, other: Pod, host: Host, probes: HostProbes, version: int
) -> None:
    """What a pod sends to an enrolled one through the host still has that pod's address."""
    async with app_beyond(pod, version) as target:
        await probes.ensure(enrolled("a", target))
        assert ip_address((await ask(other, target, APP))[1]) == address(other, version)
        assert "packets 0 bytes 0 snat" in host.nft(f"list table {TABLE}")
        assert await probed_from(target) == PROBE[version]


@contextlib.asynccontextmanager
async def app_beyond(pod: Pod, version: int) -> AsyncIterator[IPAddress]:
    """An app at an address of `pod` that other pods reach only through the host."""
    target = BEYOND[version]
    pod.shell(f"ip addr add {target} dev eth0{' nodad' if version == 6 else ''}")
    ip_batch(f"route add {target} via {address(pod, version)}")
    await met(pod, version)
    with forwarding():
        async with echo_app(pod, target, APP):
            yield target


@contextlib.contextmanager
def forwarding() -> Iterator[None]:
    def turn(value: str) -> None:
        for name in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
            with open(os.path.join("/proc/sys/net", name), "w") as setting:
                setting.write(value)

    turn("1")
    try:
        yield
    finally:
        turn("0")


@pytest.mark.parametrize("family", ["inet", "own"])
@pytest.mark.parametrize("order", ["before", "after"])
async def test_nobodys_masquerade_takes_the_probes(
    pod: Pod, host: Host, probes: HostProbes, version: int, *, order: str, family: str
) -> None:
    """L20: a masquerade at the usual priority does not win, whoever was there first."""
    text = MASQUERADE.format(
        family={"inet": "inet", "own": "ip" if version == 4 else "ip6"}[family]
    )
    target = address(pod, version)
    await met(pod, version)
    if order == "before":
        host.nft(text)
    await probes.ensure(enrolled("a", target))
    if order == "after":
        host.nft(text)
    async with echo_app(pod, target, APP):
        assert await probed_from(target) == PROBE[version]


async def test_no_probe_slips_by_while_the_table_is_replaced(
    pod: Pod, host: Host, probes: HostProbes
) -> None:
    """L24: rules and addresses are replaced in one transaction: every probe in it is marked."""
    await probes.ensure(enrolled("a", *pod.addresses))
    replaced = asyncio.Event()

    async def replace() -> None:
        for _ in range(10):
            host.nft(f"add chain {TABLE} theirs")
            await probes.ensure(enrolled("a", *pod.addresses))
        replaced.set()

    seen = []
    async with echo_app(pod, pod.v4, APP), asyncio.TaskGroup() as tasks:
        tasks.create_task(replace())
        while not replaced.is_set():
            seen.append(await probed_from(pod.v4))
    assert len(seen) > 10
    assert set(seen) == {PROBE_V4}
