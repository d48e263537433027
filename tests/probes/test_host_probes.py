"""The host's probe set: what is in it for which pod, and what is left alone."""

import asyncio
import contextlib
import itertools
import os
import threading
from collections.abc import AsyncIterator, Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address

import nftables
import pytest

from nodeagent.mesh.errors import GiveUpError, RetryError
from nodeagent.mesh.pod import IPAddress, PodUID
from nodeagent.netns.threads import NetnsThreads
from nodeagent.probes.host_probes import HostProbes
from nodeagent.probes.nft_backend import NftProbeBackend
from nodeagent.probes.rules import Owners
from tests.eventually import PATIENCE
from tests.lab.host import SET_V4, SET_V6, TABLE, Host, enrolled, probes_of

V4, V6 = ip_address("10.1.0.1"), ip_address("fd00::1")
OTHER = ip_address("10.1.0.2")
NEWSETELEM, DELSETELEM, NEWGEN = 12, 14, 15


@pytest.fixture
async def probes(host: Host, threads: NetnsThreads) -> AsyncIterator[HostProbes]:
    async with probes_of(host, threads) as probes:
        yield probes


async def test_each_address_is_in_for_its_pod(host: Host, probes: HostProbes) -> None:
    """Every address of an enrolled pod is in the set of its family, with the pod's UID."""
    await probes.start()
    assert await probes.ensure(enrolled("a", V4, V6)) == (
        f"{V4} is missing",
        f"{V6} is missing",
    )
    assert host.owners(SET_V4) == {V4: "a"}
    assert host.owners(SET_V6) == {V6: "a"}


async def test_what_is_right_is_only_looked_at(host: Host, probes: HostProbes) -> None:
    """L24: a second look finds nothing and writes nothing."""
    await probes.ensure(enrolled("a", V4, V6))
    with host.news() as news:
        await probes.start()
        assert await probes.ensure(enrolled("a", V4, V6)) == ()
        await probes.prune([enrolled("a", V4, V6)])
        await probes.remove(PodUID("b"))
        assert news() == []


async def test_quiet_set_is_not_asked_for(
    probes: HostProbes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """L25: where nobody has changed anything on the host, a look is one question, in no thread."""
    await probes.ensure(enrolled("a", V4))
    assert await probes.ensure(enrolled("a", V4)) == ()

    def asked(*_: object) -> None:
        raise AssertionError

    with monkeypatch.context() as context:
        context.setattr(NftProbeBackend, "owner", asked)
        assert await probes.ensure(enrolled("a", V4)) == ()
        with pytest.raises(AssertionError):
            await probes.ensure(enrolled("a", V6))
    assert await probes.ensure(enrolled("a", V6)) == (
        f"{V6} is missing",
        f"{V4} is no longer the pod's",
    )
    await probes.remove(PodUID("a"))
    assert await probes.ensure(enrolled("a", V6)) == (f"{V6} is missing",)


@pytest.mark.parametrize(
    "change",
    [
        f"delete element {TABLE} {SET_V4} {{ {V4} }}",
        f"flush set {TABLE} {SET_V4}",
        f"delete table {TABLE}",
    ],
)
async def test_whatever_changes_on_the_host_is_seen(
    host: Host, probes: HostProbes, change: str
) -> None:
    """L9, L27: an entry that somebody took out is back with the very next look."""
    await probes.ensure(enrolled("a", V4))
    assert await probes.ensure(enrolled("a", V4)) == ()
    host.nft(change)
    assert await probes.ensure(enrolled("a", V4)) != ()
    assert host.owners(SET_V4) == {V4: "a"}
    assert await probes.ensure(enrolled("a", V4)) == ()


async def test_a_pod_costs_one_element(host: Host, probes: HostProbes) -> None:
    """Among 1,000 addresses, a pod that comes, loses its element or goes changes only that."""
    addresses = [IPv4Address(0x0A02_0000 + number) for number in range(1, 1001)]
    pods = [enrolled(f"uid-{number}", address) for number, address in enumerate(addresses)]
    for pod in pods:
        await probes.ensure(pod)
    assert host.owners() == {pod.addresses[0]: pod.uid for pod in pods}
    with host.news() as news:
        await probes.ensure(enrolled("a", V4))
        assert news() == [NEWSETELEM, NEWGEN]
        host.nft(f"delete element {TABLE} {SET_V4} {{ {V4} }}")
        news()
        assert await probes.ensure(enrolled("a", V4)) == (f"{V4} is missing",)
        assert news() == [NEWSETELEM, NEWGEN]
        await probes.remove(PodUID("a"))
        assert news() == [DELSETELEM, NEWGEN]
    assert len(host.owners()) == 1000


async def test_concurrent_pods(host: Host, probes: HostProbes) -> None:
    """L5: pods that come and go all at once end up right."""
    pods = [enrolled(f"uid-{n}", f"10.3.0.{n}", f"fd00::3:{n}") for n in range(100)]
    await asyncio.gather(*(probes.ensure(pod) for pod in pods))
    assert len(host.owners()) == 200
    await asyncio.gather(
        *(probes.remove(pod.uid) for pod in pods[::2]),
        *(probes.ensure(pod) for pod in pods[1::2]),
    )
    assert host.owners() == {a: pod.uid for pod in pods[1::2] for a in pod.addresses}


async def test_a_cancelled_change_comes_before_the_next(
    host: Host, probes: HostProbes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pod's removal waits for a change of it that was given up, and so has the last word."""
    started, may_go_on = threading.Event(), threading.Event()
    change = NftProbeBackend.change

    def slowly(backend: NftProbeBackend, deleted: Iterable[IPAddress], added: Owners) -> None:
        started.set()
        may_go_on.wait(PATIENCE)
        change(backend, deleted, added)

    await probes.start()
    with monkeypatch.context() as slowed:
        slowed.setattr(NftProbeBackend, "change", slowly)
        given_up = asyncio.create_task(probes.ensure(enrolled("a", V4)))
        await asyncio.to_thread(started.wait, PATIENCE)
    given_up.cancel()
    with pytest.raises(asyncio.CancelledError):
        await given_up
    removal = asyncio.create_task(probes.remove(PodUID("a")))
    assert (await asyncio.wait([removal], timeout=0.1))[0] == set(), "it did not wait"
    may_go_on.set()
    await removal
    assert host.owners() == {}


async def test_an_address_goes_to_the_pod_that_has_it_now(host: Host, probes: HostProbes) -> None:
    """L27: an address is given again before the old pod's delete, which then takes nothing."""
    await probes.ensure(enrolled("old", V4))
    assert await probes.ensure(enrolled("new", V4)) == (f"{V4} belongs to old",)
    assert host.owners() == {V4: "new"}
    await probes.remove(PodUID("old"))
    assert host.owners() == {V4: "new"}


async def test_a_late_look_at_the_old_pod_costs_the_new_one_nothing(
    host: Host, probes: HostProbes
) -> None:
    """L27: the old pod is looked at once more, and then deleted: the new one has the address."""
    await probes.ensure(enrolled("old", V4))
    await probes.ensure(enrolled("new", V4))
    await probes.ensure(enrolled("old", V4))
    await probes.remove(PodUID("old"))
    assert host.owners() == {V4: "new"}
    await probes.remove(PodUID("new"))
    assert host.owners() == {}


async def test_an_address_that_is_there_already_is_no_error(host: Host, probes: HostProbes) -> None:
    """L27: an element that nobody knows the owner of is taken over."""
    await probes.start()
    host.nft(f"add element {TABLE} {SET_V4} {{ {V4} }}")
    assert await probes.ensure(enrolled("a", V4)) == (f"{V4} belongs to nobody",)
    assert host.owners() == {V4: "a"}


async def test_a_pod_whose_address_changed(
    host: Host, threads: NetnsThreads, probes: HostProbes
) -> None:
    """The old address goes, even where it was a former agent that put it in."""
    await probes.ensure(enrolled("a", V4, V6))
    await probes.ensure(enrolled("a", OTHER, V6))
    assert host.owners() == {OTHER: "a", V6: "a"}
    async with probes_of(host, threads) as later:
        await later.start()
        assert await later.ensure(enrolled("a", V4)) == (
            f"{V4} is missing",
            *(f"{address} is no longer the pod's" for address in (OTHER, V6)),
        )
    assert host.owners() == {V4: "a"}


async def test_a_pod_without_address_keeps_what_it_had(
    host: Host, threads: NetnsThreads, probes: HostProbes
) -> None:
    """L9: a pod that has no address for a moment keeps its elements, and they are put back."""
    await probes.ensure(enrolled("a", V4, V6))
    assert await probes.ensure(enrolled("a")) == ()
    async with probes_of(host, threads) as later:
        await later.start()
        for agent in (probes, later):
            host.nft(f"delete element {TABLE} {SET_V4} {{ {V4} }}")
            assert await agent.ensure(enrolled("a")) == (f"{V4} is missing",)
            assert host.owners() == {V4: "a", V6: "a"}


async def test_a_pod_without_address_takes_none_from_another(
    host: Host, probes: HostProbes
) -> None:
    """What is not known now is no claim against a pod that has the address."""
    await probes.ensure(enrolled("old", V4))
    await probes.ensure(enrolled("new", V4))
    assert await probes.ensure(enrolled("old")) == ()
    assert host.owners() == {V4: "new"}


async def test_prune(host: Host, threads: NetnsThreads) -> None:
    """At the start the set is made to have the enrolled pods' addresses and no others."""
    async with probes_of(host, threads) as probes:
        for uid, address in (("a", V4), ("gone", OTHER), ("also gone", V6)):
            await probes.ensure(enrolled(uid.replace(" ", "-"), address))
        host.nft(f"add element {TABLE} {SET_V4} {{ 10.9.9.9 }}")
    async with probes_of(host, threads) as later:
        await later.start()
        await later.ensure(enrolled("new", "10.1.0.7"))
        await later.prune([enrolled("a", V4)])
    assert host.owners() == {V4: "a", ip_address("10.1.0.7"): "new"}


async def test_missing_data_never_prunes(host: Host, threads: NetnsThreads) -> None:
    """L9: while one enrolled pod has no address, nothing is pruned."""
    async with probes_of(host, threads) as probes:
        await probes.ensure(enrolled("a", V4))
        await probes.ensure(enrolled("b", OTHER))
    async with probes_of(host, threads) as later:
        await later.start()
        await later.prune([enrolled("a", V4), enrolled("b")])
        assert host.owners() == {V4: "a", OTHER: "b"}


async def test_removal_needs_no_table(host: Host, probes: HostProbes) -> None:
    """A pod leaves a host on which nothing stands any more."""
    await probes.ensure(enrolled("a", V4))
    host.nft("flush ruleset")
    await probes.remove(PodUID("a"))
    assert host.nft("list ruleset") == ""


@pytest.mark.parametrize("uid", ["", 'a" }; flush ruleset', "a\nb", "ä", "a" * 64, "a b"])
async def test_a_uid_that_is_none_is_refused(host: Host, probes: HostProbes, uid: str) -> None:
    """What is not a UID never gets near a rule set, and trying again would not help."""
    await probes.start()
    with pytest.raises(GiveUpError, match="not a UID"):
        await probes.ensure(enrolled(uid, V4))
    assert host.owners() == {}


async def test_addresses_are_taken_as_they_are_in_packets(host: Host, probes: HostProbes) -> None:
    """A mapped address is IPv4, a zone is dropped, and the host's own loopback is never in."""
    addresses = [IPv6Address("::ffff:10.1.0.1"), IPv6Address("fd00::1%x } ; flush ruleset ;")]
    await probes.ensure(enrolled("a", *addresses, "127.0.0.1", "::1", "0.0.0.0", "ff02::1"))
    assert host.owners() == {V4: "a", V6: "a"}


async def test_a_failed_change_is_not_forgotten(host: Host, probes: HostProbes) -> None:
    """An address that a pod lost in a change that failed goes with the retry."""
    await probes.ensure(enrolled("a", V4))
    listing = host.nft(f"list table {TABLE}")
    host.nft("flush ruleset")
    owner = host.run(nftables.Nftables)
    assert owner.cmd(f"add table {TABLE} {{ flags owner; }}")[0] == 0
    with pytest.raises(RetryError):
        await probes.ensure(enrolled("a", OTHER))
    del owner
    host.nft(listing)
    await probes.ensure(enrolled("a", OTHER))
    assert host.owners() == {OTHER: "a"}


async def test_nothing_stays_open(host: Host, threads: NetnsThreads) -> None:
    """The descriptors that are kept between changes are given back, after a fault too."""
    before = open_sockets()
    async with probes_of(host, threads) as probes:
        for number, uid in itertools.product(range(5), "ab"):
            await probes.ensure(enrolled(uid, f"10.6.0.{number}"))
        owner = host.run(nftables.Nftables)
        host.nft("flush ruleset")
        assert owner.cmd(f"add table {TABLE} {{ flags owner; }}")[0] == 0
        with pytest.raises(RetryError):
            await probes.ensure(enrolled("a", V4))
        del owner
    assert open_sockets() == before


def open_sockets() -> list[str]:
    links = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            links.append(os.readlink(f"/proc/self/fd/{fd}"))
    return sorted(link for link in links if link.startswith("socket:"))


async def test_inspection_tells_and_writes_nothing(host: Host, probes: HostProbes) -> None:
    """Which addresses the kernel does not have for the pod; without the table, too."""
    pod = enrolled("a", V4, V6)
    assert await probes.inspect(pod) == (f"{V4} is missing", f"{V6} is missing")
    await probes.ensure(pod)
    with host.news() as news:
        assert await probes.inspect(pod) == ()
        assert await probes.inspect(enrolled("b", V4)) == (f"{V4} belongs to a",)
        assert news() == []
