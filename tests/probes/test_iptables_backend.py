"""The host's probe set on iptables: what is in it, what is repaired, what is left alone."""

import asyncio
from collections.abc import AsyncIterator
from ipaddress import IPv4Address, ip_address

import pytest

from nodeagent.linux.netlink import Netlink
from nodeagent.mesh.errors import GiveUpError
from nodeagent.mesh.pod import PodUID
from nodeagent.netfilter import ipset
from nodeagent.netfilter.errors import RulesError
from nodeagent.netfilter.iptables_programs import Variant, restore, save
from nodeagent.netfilter.rule import Family
from nodeagent.netns.threads import NetnsThreads
from nodeagent.probes import iptables_backend, iptables_rules
from nodeagent.probes.host_probes import HostProbesError
from nodeagent.probes.migration import BackendMigration
from nodeagent.probes.rules import ProbeRules
from tests.lab.host import PROBE_V4, PROBE_V6, SET_V4, SET_V6, enrolled, uninstall
from tests.lab.ipsets import IptablesHost, probes_in

V4, V6 = ip_address("10.1.0.1"), ip_address("fd00::1")
OTHER = ip_address("10.1.0.2")
ADD, DELETE = 6 << 8 | 9, 6 << 8 | 10
CHAIN_V4 = """\
-A POSTROUTING -j ISTIO_POSTRT
-A ISTIO_POSTRT -m comment --comment "nodeagent layout 1"
-A ISTIO_POSTRT -p tcp -m owner --socket-exists -m set --match-set istio-inpod-probes-v4 dst\
 -j SNAT --to-source 169.254.7.127
COMMIT"""
FOREIGN = """\
*nat
:KUBE-POSTROUTING - [0:0]
-A POSTROUTING -m comment --comment "somebody's -j ISTIO_POSTRT" -j KUBE-POSTROUTING
-A KUBE-POSTROUTING -s 10.0.0.0/8 -j MASQUERADE
COMMIT
*filter
:ISTIO_POSTRT - [0:0]
-A ISTIO_POSTRT -p udp -j RETURN
-A OUTPUT -j ISTIO_POSTRT
COMMIT
"""


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chains are looked at every time."""
    monkeypatch.setattr(iptables_backend, "LISTING_PAUSE", 0)


@pytest.fixture(params=Variant)
def variant(request: pytest.FixtureRequest) -> Variant:
    return Variant(request.param)


@pytest.fixture
async def probes(
    variant: Variant, host: IptablesHost, threads: NetnsThreads
) -> AsyncIterator[BackendMigration]:
    async with probes_in(variant, host, threads) as probes:
        yield probes


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The kinds of all changes that are asked of the kernel over netlink."""
    asked: list[int] = []
    request = Netlink.request

    def noted(netlink: Netlink, kind: int, flags: int, body: bytes) -> None:
        asked.append(kind)
        request(netlink, kind, flags, body)

    monkeypatch.setattr(Netlink, "request", noted)
    return asked


async def test_each_address_is_in_for_its_pod(
    host: IptablesHost, variant: Variant, probes: BackendMigration
) -> None:
    """Chain and sets are the ones that operators know; an element's comment is the pod's UID."""
    await probes.start()
    assert await probes.ensure(enrolled("a", V4, V6)) == (f"{V4} is missing", f"{V6} is missing")
    assert host.ipset_owners(SET_V4) == {V4: "a"}
    assert host.ipset_owners(SET_V6) == {V6: "a"}
    listing = host.iptables(variant)
    assert CHAIN_V4 in listing
    assert f"--match-set {SET_V6} dst -j SNAT --to-source {PROBE_V6}\n" in listing


@pytest.mark.usefixtures("looks")
async def test_what_is_right_is_only_looked_at(
    host: IptablesHost, variant: Variant, threads: NetnsThreads
) -> None:
    """L24: a restart finds nothing to do, and leaves every byte and counter as it was."""
    async with probes_in(variant, host, threads) as probes:
        await probes.start()
        await probes.ensure(enrolled("a", V4, V6))
    before = (host.iptables(variant, counters=True), host.shell("ipset save"))
    generation = host.shell("nft -a list ruleset")
    async with probes_in(variant, host, threads) as later:
        await later.start()
        assert await later.ensure(enrolled("a", V4, V6)) == ()
        await later.prune([enrolled("a", V4, V6)])
        await later.remove(PodUID("b"))
    assert (host.iptables(variant, counters=True), host.shell("ipset save")) == before
    assert host.shell("nft -a list ruleset") == generation, "rules were written anew"


async def test_a_pod_costs_one_element(
    host: IptablesHost, probes: BackendMigration, requests: list[int]
) -> None:
    """Among 1,000 addresses, a pod that comes, loses its element or goes changes only that."""
    await probes.start()
    host.shell(
        "ipset restore",
        stdin="".join(f"add {SET_V4} {IPv4Address(0x0A02_0000 + n)}\n" for n in range(1000)),
    )
    requests.clear()
    await probes.ensure(enrolled("a", V4))
    host.shell(f"ipset del {SET_V4} {V4}")
    assert await probes.ensure(enrolled("a", V4)) == (f"{V4} is missing",)
    await probes.remove(PodUID("a"))
    assert [kind for kind in requests if kind >> 8 == 6] == [ADD, ADD, DELETE]
    assert len(host.ipset_owners()) == 1000


async def test_concurrent_pods(host: IptablesHost, probes: BackendMigration) -> None:
    """L5: pods that come and go all at once end up right."""
    pods = [enrolled(f"uid-{n}", f"10.3.0.{n}", f"fd00::3:{n}") for n in range(50)]
    await asyncio.gather(*(probes.ensure(pod) for pod in pods))
    await asyncio.gather(
        *(probes.remove(pod.uid) for pod in pods[::2]),
        *(probes.ensure(pod) for pod in pods[1::2]),
    )
    assert host.ipset_owners() == {a: pod.uid for pod in pods[1::2] for a in pod.addresses}


async def test_an_address_goes_to_the_pod_that_has_it_now(
    host: IptablesHost, probes: BackendMigration
) -> None:
    """L27: an add overwrites, in place; the old pod's delete takes nothing."""
    await probes.start()
    host.shell(f"ipset add {SET_V4} {V4}")
    assert await probes.ensure(enrolled("old", V4)) == (f"{V4} belongs to nobody",)
    assert await probes.ensure(enrolled("new", V4)) == (f"{V4} belongs to old",)
    await probes.remove(PodUID("old"))
    assert host.ipset_owners() == {V4: "new"}
    await probes.remove(PodUID("new"))
    assert host.ipset_owners() == {}


async def test_missing_data_never_prunes(
    host: IptablesHost, variant: Variant, threads: NetnsThreads
) -> None:
    """L9: a pod without address keeps what it had, and while there is one nothing is pruned."""
    async with probes_in(variant, host, threads) as probes:
        await probes.ensure(enrolled("a", V4))
        await probes.ensure(enrolled("b", OTHER))
    async with probes_in(variant, host, threads) as later:
        await later.start()
        await later.prune([enrolled("a", V4), enrolled("b")])
        host.shell(f"ipset del {SET_V4} {OTHER}")
        assert await later.ensure(enrolled("b")) == (f"{OTHER} is missing",)
        assert host.ipset_owners() == {V4: "a", OTHER: "b"}
        await later.prune([enrolled("a", V4)])
        await later.remove(PodUID("b"))
        assert host.ipset_owners() == {V4: "a"}


async def test_a_uid_that_is_none_is_refused(host: IptablesHost, probes: BackendMigration) -> None:
    """What is not a UID never gets near a set."""
    await probes.start()
    with pytest.raises(GiveUpError, match="not a UID"):
        await probes.ensure(enrolled('a"\nflush', V4))
    assert host.ipset_owners() == {}


BREAKAGES = {
    "flush": ["iptables-{} -t nat -F ISTIO_POSTRT"],
    "no jump": ["iptables-{} -t nat -D POSTROUTING -j ISTIO_POSTRT"],
    "not first": ["iptables-{} -t nat -I POSTROUTING -p tcp -j MASQUERADE"],
    "twice": ["iptables-{} -t nat -A POSTROUTING -j ISTIO_POSTRT"],
    "other source": [
        f"iptables-{{}} -t nat -R ISTIO_POSTRT 2 -p tcp -m set --match-set {SET_V4} dst -j RETURN"
    ],
    "other layout": ["iptables-{} -t nat -R ISTIO_POSTRT 1 -m comment --comment v0"],
    "no chain": [
        "iptables-{} -t nat -F POSTROUTING",
        "iptables-{} -t nat -F ISTIO_POSTRT",
        "iptables-{} -t nat -X ISTIO_POSTRT",
    ],
    "no set": ["iptables-{} -t nat -F ISTIO_POSTRT", f"ipset destroy {SET_V4}"],
    "other set": [
        "iptables-{} -t nat -F ISTIO_POSTRT",
        f"ipset destroy {SET_V4}",
        f"ipset create {SET_V4} hash:ip,port",
        f"ipset add {SET_V4} 10.9.9.9,tcp:80",
    ],
    "no comments": [
        "iptables-{} -t nat -F ISTIO_POSTRT",
        f"ipset destroy {SET_V4}",
        f"ipset create {SET_V4} hash:ip",
        f"ipset add {SET_V4} {V4}",
    ],
    "other set in use": [
        "iptables-{} -t nat -F ISTIO_POSTRT",
        f"ipset destroy {SET_V4}",
        f"ipset create {SET_V4} hash:net",
        f"iptables-{{}} -t nat -A ISTIO_POSTRT -m set --match-set {SET_V4} dst -j RETURN",
    ],
}


@pytest.mark.usefixtures("looks")
@pytest.mark.parametrize("breakage", BREAKAGES)
async def test_what_others_change_is_repaired(
    host: IptablesHost, variant: Variant, probes: BackendMigration, breakage: str
) -> None:
    """L1, L20, L23: chain, jump and set are put back, ours first, with every pod's addresses."""
    await probes.start()
    await probes.ensure(enrolled("a", V4, V6))
    await probes.ensure(enrolled("b", OTHER))
    for command in BREAKAGES[breakage]:
        host.shell(command.format(variant))
    assert await probes.ensure(enrolled("a", V4, V6)) != ()
    assert host.ipset_owners() == {V4: "a", OTHER: "b", V6: "a"}
    nat = host.iptables(variant).partition("*nat")[2]
    hook = [line for line in nat.splitlines() if line.startswith("-A POSTROUTING")]
    assert hook[0] == "-A POSTROUTING -j ISTIO_POSTRT"
    assert hook.count(hook[0]) == 2, "once in each family"
    assert CHAIN_V4.partition("\n")[2] in nat
    assert await probes.ensure(enrolled("a", V4, V6)) == ()


async def test_many_pods_share_a_look_at_the_chains(
    host: IptablesHost, probes: BackendMigration, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a listing takes long, 100 pods that ask at once do not each have one made."""
    made: list[Family] = []

    def noted(variant: Variant, family: Family) -> str:
        made.append(family)
        return save(variant, family)

    await probes.start()
    monkeypatch.setattr(iptables_backend, "LISTING_PAUSE", 10_000)
    await probes.start()
    monkeypatch.setattr(iptables_rules, "save", noted)
    await asyncio.gather(*(probes.ensure(enrolled(f"uid-{n}", f"10.3.0.{n}")) for n in range(100)))
    assert made == []
    assert len(host.ipset_owners()) == 100


async def test_uninstall_leaves_nothing(
    host: IptablesHost, variant: Variant, probes: BackendMigration
) -> None:
    """L7: chain and sets go; rules of others are untouched to the byte; no table is made."""
    host.shell(f"iptables-{variant}-restore", stdin=FOREIGN)
    before = host.iptables(variant, family="iptables")
    await probes.start()
    await probes.ensure(enrolled("a", V4, V6))
    await probes.prune([enrolled("a", V4, V6)])
    assert "-A POSTROUTING -j ISTIO_POSTRT" in host.iptables(variant)
    assert uninstall(host).removed
    assert host.iptables(variant, family="iptables") == before
    assert "ISTIO" not in host.iptables(variant, family="ip6tables")
    assert host.shell("ipset save") == ""
    assert not uninstall(host).removed
    assert (host.legacy_tables() == "") == (variant is Variant.NFT)


def test_looking_makes_nothing(host: IptablesHost) -> None:
    """L7: an uninstall on a host without anything leaves it so."""
    assert not uninstall(host).removed
    assert host.legacy_tables() == ""
    assert host.nft("list ruleset") == ""


async def test_a_chain_that_somebody_leads_to_stays_empty(
    host: IptablesHost, variant: Variant, probes: BackendMigration
) -> None:
    """The kernel keeps what somebody's rule needs; it is not ours any more."""
    await probes.start()
    host.shell(f"iptables-{variant} -t nat -A POSTROUTING -p udp -j ISTIO_POSTRT")
    assert uninstall(host).removed
    assert "-A POSTROUTING -p udp -j ISTIO_POSTRT" in host.iptables(variant)
    assert "-A ISTIO_POSTRT" not in host.iptables(variant)
    assert not uninstall(host).removed


async def test_other_settings(host: IptablesHost, variant: Variant, threads: NetnsThreads) -> None:
    """Without IPv6 the v6 chain goes, and its addresses are not kept."""
    async with probes_in(variant, host, threads) as probes:
        await probes.ensure(enrolled("a", V4, V6))
    async with probes_in(variant, host, threads, ipv6=False) as later:
        await later.start()
        assert await later.ensure(enrolled("a", V4, V6)) == ()
    assert SET_V6 not in host.iptables(variant)
    assert host.ipset_owners(SET_V4) == {V4: "a"}


async def test_a_kernel_without_ipv6(
    host: IptablesHost,
    variant: Variant,
    probes: BackendMigration,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Probes of IPv4 addresses are let through, and one warning names the setting."""

    def refusing(variant: Variant, family: Family, text: str) -> None:
        if family is Family.V6:
            raise RulesError("ip6tables: Address family not supported by protocol")
        restore(variant, family, text)

    monkeypatch.setattr(iptables_rules, "restore", refusing)
    iptables_backend.reference.cache_clear()
    await probes.start()
    await probes.ensure(enrolled("a", V4, V6))
    await probes.ensure(enrolled("b", OTHER))
    host.shell(f"iptables-{variant} -t nat -F ISTIO_POSTRT")
    await probes.start()
    assert CHAIN_V4 in host.iptables(variant)
    assert host.ipset_owners(SET_V4) == {V4: "a", OTHER: "b"}
    assert capsys.readouterr().out.count("AMBIENT_IPV6=false") == 1
    assert uninstall(host).failed == []


async def test_a_kernel_without_ipsets(
    host: IptablesHost, probes: BackendMigration, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The missing feature is named, and there is nothing to uninstall."""
    # A number that no part of the kernel answers to is what ipsets are there.
    monkeypatch.setattr(ipset, "NFNL_SUBSYS_IPSET", 15)
    iptables_backend.reference.cache_clear()
    with pytest.raises(HostProbesError, match=r"no ipsets \(CONFIG_IP_SET\)"):
        await probes.start()
    assert not uninstall(host).removed


def test_a_kernel_without_the_matches(host: IptablesHost, variant: Variant) -> None:
    """Where the rule is refused, the features that it needs are named."""
    rules = ProbeRules(probe_v4=PROBE_V4, probe_v6=PROBE_V6, ipv6=False)
    with pytest.raises(RulesError, match="CONFIG_NETFILTER_XT_SET"):
        host.run(lambda: iptables_rules.write_chain(variant, Family.V4, rules, None))
    assert "ISTIO" not in host.iptables(variant)


async def test_a_set_that_somebody_uses(
    host: IptablesHost, variant: Variant, probes: BackendMigration
) -> None:
    """A set in somebody else's rule cannot go, and that is said; the chain has gone before."""
    await probes.start()
    host.shell(f"iptables-{variant} -A OUTPUT -m set --match-set {SET_V4} dst -j RETURN")
    done = uninstall(host)
    assert "somebody else's rule uses it" in "; ".join(done.left)
    assert "ISTIO" not in host.iptables(variant)
