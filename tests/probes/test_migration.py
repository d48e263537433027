"""From one backend to another, and from Istio's own agent to us, on the host."""

import asyncio
from collections.abc import Iterable
from ipaddress import ip_address

import pytest

from nodeagent.mesh.pod import PodUID
from nodeagent.netfilter.errors import RulesError
from nodeagent.netfilter.iptables_programs import Variant
from nodeagent.netfilter.rule import Family
from nodeagent.netns.threads import NetnsThreads
from nodeagent.probes import migration, removal
from nodeagent.probes.iptables_rules import ProbeChains, read_chains
from tests.eventually import eventually
from tests.lab.host import PROBE_V4, SET_V4, SET_V6, TABLE, enrolled, uninstall
from tests.lab.ipsets import KINDS, IptablesHost, probes_in
from tests.probes.others import ISTIO_CHAIN, ISTIO_TABLE, V4, in_use, istio

V6 = ip_address("fd00::1")
OTHER = ip_address("10.1.0.2")
FOREIGN_TABLE = "table inet theirs { chain c { type filter hook output priority 7; }; }"
FOREIGN_CHAIN = "iptables-{} -t nat -A POSTROUTING -s 10.0.0.0/8 -j MASQUERADE"
FOREIGN_SET = "ipset create theirs hash:ip"


MOVES = [(old, new) for old in KINDS for new in KINDS if old is not new]


@pytest.mark.parametrize(("old", "new"), MOVES, ids=str)
async def test_the_former_backend_goes_last(
    host: IptablesHost,
    threads: NetnsThreads,
    *,
    old: Variant | None,
    new: Variant | None,
) -> None:
    """L7, L8: the old rules go in place, once every enrolled pod's addresses are in the new."""
    host.nft(FOREIGN_TABLE)
    pods = [enrolled("a", V4, V6), enrolled("b", OTHER)]
    async with probes_in(old, host, threads) as former:
        await former.start()
        for pod in pods:
            await former.ensure(pod)
    async with probes_in(new, host, threads) as later:
        await later.start()
        await later.ensure(pods[0])
        assert in_use(host) == {old, new}
        await later.prune(pods)
        assert in_use(host) == {old, new}, "a pod is not in yet"
        await later.ensure(enrolled("b"))
        assert in_use(host) == {old, new}, "its address is not known yet"
        await later.ensure(pods[1])
        assert in_use(host) == {new}
    owners = host.owners() if new is None else host.ipset_owners()
    assert owners == {V4: "a", V6: "a", OTHER: "b"}
    assert (host.shell("ipset save") == "") == (new is None)
    assert "table inet theirs" in host.nft("list ruleset")


@pytest.mark.parametrize("kind", KINDS, ids=str)
async def test_what_istio_left_is_taken_over(
    host: IptablesHost, threads: NetnsThreads, kind: Variant | None
) -> None:
    """L7, L8: Istio's chain, jump and sets become ours or go; others' are untouched to the byte."""
    host.shell(FOREIGN_CHAIN.format("legacy"), FOREIGN_CHAIN.format("nft"), FOREIGN_SET)
    before = {v: host.iptables(v, family="iptables") for v in Variant}
    host.shell(
        f"ipset create {SET_V4} hash:ip comment",
        f"ipset add {SET_V4} {V4} comment a",
        f"ipset create {SET_V6} hash:ip family inet6 comment",
        "iptables-legacy -t nat -N ISTIO_POSTRT",
        "iptables-legacy -t nat -I POSTROUTING 1 -j ISTIO_POSTRT",
        "iptables-legacy -t nat -A ISTIO_POSTRT -m owner --socket-exists -p tcp"
        f" -m set --match-set {SET_V4} dst -j SNAT --to-source {PROBE_V4}",
    )
    async with probes_in(kind, host, threads) as probes:
        await probes.start()
        await probes.ensure(enrolled("a", V4))
        await probes.prune([enrolled("a", V4)])
        assert in_use(host) == {kind}
        assert (host.owners() if kind is None else host.ipset_owners()) == {V4: "a"}
        for variant in set(Variant) - {kind}:
            assert host.iptables(variant, family="iptables") == before[variant]
        assert uninstall(host).removed
    assert {v: host.iptables(v, family="iptables") for v in Variant} == before
    assert host.shell("ipset save").count("create") == 1


@pytest.mark.parametrize(("owner", "kind"), MOVES, ids=str)
async def test_what_istio_left_goes_at_a_takeover(
    host: IptablesHost,
    threads: NetnsThreads,
    *,
    owner: Variant | None,
    kind: Variant | None,
) -> None:
    """L30: exactly what Istio's agent makes goes, in each language but our own."""
    istio(host, owner)
    async with probes_in(kind, host, threads) as probes:
        await probes.start()
        await probes.ensure(enrolled("a", V4))
        await probes.prune([enrolled("a", V4)])
    assert in_use(host) == {kind}


@pytest.mark.parametrize("kind", KINDS, ids=str)
async def test_istio_takes_our_place_and_we_take_its(
    host: IptablesHost, threads: NetnsThreads, kind: Variant | None
) -> None:
    """Istio's agent can write its rules over ours, and whatever comes of it is taken over."""
    pods = [enrolled("a", V4)]
    async with probes_in(None, host, threads) as before:
        await before.start()
        await before.ensure(pods[0])
    # First its sets, then its rules, each in one transaction.
    sets, rules = ISTIO_TABLE.split(f"add chain {TABLE}")
    host.nft(sets)
    host.nft(f"add table {TABLE}\nflush table {TABLE}\nadd chain {TABLE}{rules}")
    listing = host.nft(f"list table {TABLE}")
    assert listing.count("snat ip to") == 1, "one agent's rules let probes through, not two's"
    assert "skuid 1000" in listing
    assert host.owners() == {V4: "a"}
    async with probes_in(kind, host, threads) as after:
        await after.start()
        await after.ensure(pods[0])
        await after.prune(pods)
        assert "skuid 1000" not in host.nft("list ruleset")
        assert in_use(host) == {kind}


@pytest.mark.parametrize(("owner", "kind"), MOVES, ids=str)
async def test_what_nobody_knows_stays_at_a_takeover(
    host: IptablesHost,
    threads: NetnsThreads,
    *,
    owner: Variant | None,
    kind: Variant | None,
) -> None:
    """L30: a name is no evidence: rules that Istio's agent does not make are left alone."""
    istio(host, owner)
    if owner is None:
        host.nft(f"add rule {TABLE} postrouting ip daddr 192.0.2.1 counter accept")
    else:
        host.shell(f"iptables-{owner} -t nat -A ISTIO_POSTRT -p udp -j ACCEPT")
    async with probes_in(kind, host, threads) as probes:
        await probes.start()
        await probes.ensure(enrolled("a", V4))
        await probes.prune([enrolled("a", V4)])
    assert in_use(host) == {kind, owner}


async def test_a_pod_that_goes_is_not_waited_for(host: IptablesHost, threads: NetnsThreads) -> None:
    """The old rules go with the last pod that needed them, whether it arrives or leaves."""
    async with probes_in(Variant.NFT, host, threads) as former:
        await former.ensure(enrolled("a", V4))
    async with probes_in(None, host, threads) as later:
        await later.start()
        await later.prune([enrolled("a", V4)])
        assert in_use(host) == {None, Variant.NFT}
        await later.remove(PodUID("a"))
        assert in_use(host) == {None}


async def test_what_failed_is_tried_again(
    host: IptablesHost, threads: NetnsThreads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """L35: leftovers that cannot be looked for hold nothing up, and go later."""
    failing = [True]

    def read(variant: Variant, families: Iterable[Family]) -> ProbeChains:
        if failing and variant is Variant.LEGACY:
            raise RulesError("not now")
        return read_chains(variant, families)

    monkeypatch.setattr(migration, "RETRY_AFTER", 0.01)
    monkeypatch.setattr(removal, "read_chains", read)
    istio(host, Variant.LEGACY)
    host.shell("iptables-nft -t nat -N ISTIO_POSTRT", ISTIO_CHAIN[-1].format("nft"))
    async with probes_in(None, host, threads) as probes:
        await probes.start()
        await probes.ensure(enrolled("a", V4))
        await probes.prune([enrolled("a", V4)])
        assert in_use(host) == {None, Variant.LEGACY}, "what can be removed is"
        keeping = asyncio.create_task(probes.keep_repaired())
        failing.clear()
        await eventually(lambda: in_use(host) == {None})
        keeping.cancel()
        await asyncio.wait([keeping])


async def test_nothing_is_made_by_looking(host: IptablesHost, threads: NetnsThreads) -> None:
    """L7: a life on nftables makes no table of iptables and no ipset."""
    async with probes_in(None, host, threads) as probes:
        await probes.start()
        await probes.ensure(enrolled("a", V4))
        await probes.prune([enrolled("a", V4)])
        assert host.nft("list tables").split(" # ")[0].strip() == f"table {TABLE}"
        assert uninstall(host).removed
    assert host.nft("list ruleset") == ""
    assert host.legacy_tables() == ""
    assert host.shell("ipset save") == ""


async def test_a_chain_that_cannot_go_is_no_fault(
    host: IptablesHost, threads: NetnsThreads, capsys: pytest.CaptureFixture[str]
) -> None:
    """A set that somebody else's rule uses stays, and is said to; pods are not held up."""
    async with probes_in(Variant.NFT, host, threads) as former:
        await former.ensure(enrolled("a", V4))
    host.shell(f"iptables-nft -A OUTPUT -m set --match-set {SET_V4} dst -j RETURN")
    async with probes_in(None, host, threads) as later:
        await later.ensure(enrolled("a", V4))
        await later.prune([enrolled("a", V4)])
    assert "somebody else's rule uses it" in capsys.readouterr().out
    assert in_use(host) == {None}
    assert host.ipset_owners(SET_V4) == {V4: "a"}
