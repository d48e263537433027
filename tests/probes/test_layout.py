"""The host's rules for probes: what they are, and how they are put right."""

from collections.abc import AsyncIterator
from ipaddress import IPv4Address, ip_address

import nftables
import pytest

from nodeagent.mesh.errors import RetryError
from nodeagent.mesh.pod import PodUID
from nodeagent.netns.threads import NetnsThreads
from nodeagent.probes.host_probes import HostProbes
from tests.lab.host import CHAIN, SET_V4, SET_V6, TABLE, Host, enrolled, probes_of, uninstall

V4, V6 = ip_address("10.1.0.1"), ip_address("fd00::1")
OTHER = ip_address("10.1.0.2")

FOREIGN = """
table inet istio-ambient-mangle {
    comment "somebody's of a similar name"
    set istio-inpod-probes-v4 { type ipv4_addr; elements = { 10.1.0.1 comment "theirs" }; }
}
table ip nat {
    chain POSTROUTING {
        type nat hook postrouting priority srcnat; policy accept;
        ip daddr 192.0.2.0/24 counter packets 7 bytes 420 masquerade
    }
}
"""


@pytest.fixture
async def probes(host: Host, threads: NetnsThreads) -> AsyncIterator[HostProbes]:
    async with probes_of(host, threads) as probes:
        yield probes


async def test_a_flushed_ruleset_is_put_back_whole(host: Host, probes: HostProbes) -> None:
    """A look at one pod finds that the table is gone, and brings back every pod's addresses."""
    await probes.ensure(enrolled("a", V4))
    await probes.ensure(enrolled("b", OTHER, V6))
    await probes.ensure(enrolled("gone", "10.1.0.9"))
    await probes.remove(PodUID("gone"))
    host.nft("flush ruleset")
    assert await probes.ensure(enrolled("a", V4)) == ("table istio-ambient-nat is missing",)
    assert host.owners() == {V4: "a", OTHER: "b", V6: "b"}


@pytest.mark.parametrize(
    "change",
    [
        f"flush chain {TABLE} {CHAIN}",
        f"add rule {TABLE} {CHAIN} counter",
        f"insert rule {TABLE} {CHAIN} tcp dport 80 return",
        f"add chain {TABLE} theirs",
        f"flush chain {TABLE} {CHAIN}; delete chain {TABLE} {CHAIN}",
        f"add set {TABLE} theirs {{ type ipv4_addr; }}",
        f"add table {TABLE} {{ flags dormant; }}",
        f"add chain {TABLE} {CHAIN} {{ policy drop; }}",
        f"delete table {TABLE}; add table {TABLE}",
    ],
)
async def test_another_layout_is_replaced(host: Host, probes: HostProbes, change: str) -> None:
    """L23: whatever was changed beside the addresses is noticed, repaired, and costs no address."""
    await probes.ensure(enrolled("a", V4, V6))
    right = _without_handles(host)
    host.nft(change)
    assert await probes.ensure(enrolled("a", V4, V6)) != ()
    assert _without_handles(host) == right
    assert await probes.ensure(enrolled("a", V4, V6)) == ()


def _without_handles(host: Host) -> str:
    return "\n".join(line.split(" # ")[0] for line in host.nft("list ruleset").splitlines())


@pytest.mark.parametrize(
    ("right", "wrong", "drift"),
    [
        ("nodeagent layout 1", "nodeagent layout 0", "another layout version"),
        (
            "priority srcnat - 1",
            "priority srcnat",
            f"chain {CHAIN}: another type, hook, priority or policy",
        ),
        ("snat ip to 169.254.7.127", "snat ip to 192.0.2.1", f"chain {CHAIN}: rule 1 differs"),
        ("type ipv4_addr", "type ipv4_addr; flags timeout", f"set {SET_V4} differs"),
    ],
)
async def test_every_part_of_the_layout_counts(
    host: Host, probes: HostProbes, *, right: str, wrong: str, drift: str
) -> None:
    """L23: a table that differs in one thing is written anew, with the addresses in it."""
    await probes.ensure(enrolled("a", V4))
    listing = host.nft(f"list table {TABLE}")
    assert right in listing
    host.nft(f"flush ruleset; {listing.replace(right, wrong)}")
    assert await probes.ensure(enrolled("a", V4)) == (drift,)
    assert host.owners() == {V4: "a"}


async def test_a_table_of_another_agent(host: Host, threads: NetnsThreads) -> None:
    """L23: what is quite different is replaced at the start; the addresses in it stay."""
    host.nft(
        f'add table {TABLE} {{ comment "nodeagent layout 0"; }};'
        f"add set {TABLE} {SET_V4} {{ type ipv4_addr; }};"
        f'add element {TABLE} {SET_V4} {{ {V4} comment "a", {OTHER} comment "not; a UID" }};'
        f"add set {TABLE} {SET_V6} {{ type inet_service; }};"
        f"add element {TABLE} {SET_V6} {{ 80, * }};"
        f"add chain {TABLE} istio-postrouting;"
    )
    async with probes_of(host, threads) as probes:
        await probes.start()
    assert host.owners() == {V4: "a", OTHER: ""}
    assert "istio-postrouting" not in host.nft("list ruleset")


async def test_other_settings_replace_the_rules_alone(
    host: Host, threads: NetnsThreads, probes: HostProbes
) -> None:
    """An agent with another probe address, without IPv6, keeps the addresses that it needs."""
    await probes.ensure(enrolled("a", V4, V6))
    async with probes_of(host, threads, probe_v4=IPv4Address("192.0.2.1"), ipv6=False) as later:
        await later.start()
        assert await later.ensure(enrolled("a", V4, V6)) == ()
    listing = host.nft("list ruleset")
    assert "snat ip to 192.0.2.1" in listing
    assert "169.254" not in listing
    assert "ip6" not in listing
    assert host.owners(SET_V4) == {V4: "a"}


async def test_restart_leaves_what_is_right(host: Host, threads: NetnsThreads) -> None:
    """L24: after a restart table and foreign tables are as they were, handles and counters too."""
    host.nft(FOREIGN)
    async with probes_of(host, threads) as probes:
        await probes.start()
        await probes.ensure(enrolled("a", V4, V6))
    before = host.nft("list ruleset")
    async with probes_of(host, threads) as later:
        with host.news() as news:
            await later.start()
            await later.ensure(enrolled("a", V4, V6))
            await later.prune([enrolled("a", V4, V6)])
            assert news() == []
    assert host.nft("list ruleset") == before


async def test_uninstall_leaves_nothing(host: Host, probes: HostProbes) -> None:
    """The table goes with its sets; foreign tables are untouched to the byte all along."""
    host.nft(FOREIGN)
    before = host.nft("list ruleset")
    await probes.start()
    await probes.ensure(enrolled("a", V4, V6))
    await probes.ensure(enrolled("b", OTHER))
    host.nft(f"delete chain {TABLE} {CHAIN}")
    await probes.ensure(enrolled("a", V4))
    await probes.remove(PodUID("b"))
    await probes.prune([])
    assert uninstall(host).removed
    assert host.nft("list ruleset") == before
    assert not uninstall(host).removed


async def test_a_fault_is_worth_a_retry(host: Host, probes: HostProbes) -> None:
    """What the kernel refuses is said in words, and a retry makes up for all of it."""
    await probes.ensure(enrolled("a", V4))
    await probes.ensure(enrolled("b", V6))
    host.nft("flush ruleset")
    # Nobody else may change a table that its maker owns; it goes with the maker.
    owner = host.run(nftables.Nftables)
    assert owner.cmd(f"add table {TABLE} {{ flags owner; }}")[0] == 0
    with pytest.raises(RetryError, match=r"nftables refused the rules: EPERM.*owns the table"):
        await probes.ensure(enrolled("a", OTHER))
    del owner
    await probes.ensure(enrolled("a", OTHER))
    assert host.owners() == {OTHER: "a", V6: "b"}
