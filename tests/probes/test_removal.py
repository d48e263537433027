"""An uninstall takes off the host what is proven to be ours, in every backend, and nothing else."""

import pytest

from nodeagent.netfilter.iptables_programs import Variant
from nodeagent.netns.threads import NetnsThreads
from tests.lab.host import CHAIN, SET_V4, TABLE, enrolled, uninstall
from tests.lab.ipsets import KINDS, IptablesHost, probes_in
from tests.probes.others import V4, in_use, istio


def everything(host: IptablesHost) -> list[str]:
    listings = [host.iptables(variant) for variant in Variant]
    return [*listings, host.nft("list ruleset"), host.shell("ipset save")]


@pytest.mark.parametrize("owner", KINDS, ids=str)
def test_uninstall_leaves_what_istio_has_just_made(
    host: IptablesHost, owner: Variant | None
) -> None:
    """L30: the agent that takes our place may have come already; what is left alone is named."""
    istio(host, owner)
    before = everything(host)
    done = uninstall(host)
    assert everything(host) == before
    assert done.removed == done.failed == []
    assert len(done.left) == (1 if owner is None else 2)


@pytest.mark.parametrize("owner", KINDS, ids=str)
async def test_uninstall_takes_nothing_that_somebody_put_into_ours(
    host: IptablesHost, threads: NetnsThreads, owner: Variant | None
) -> None:
    """L30: our mark does not make somebody's rule in the same chain ours."""
    async with probes_in(owner, host, threads) as probes:
        await probes.ensure(enrolled("a", V4))
        if owner is None:
            host.nft(f"add rule {TABLE} {CHAIN} ip daddr 192.0.2.1 counter accept")
        else:
            rule = "-t nat -A ISTIO_POSTRT -d 192.0.2.1/32 -j ACCEPT"
            host.shell(f"iptables-{owner} {rule}", f"ip6tables-{owner} -t nat -F ISTIO_POSTRT")
        before = everything(host)
        done = uninstall(host)
    assert everything(host) == before
    assert done.removed == done.failed == []
    assert done.left


async def test_uninstall_removes_every_kind(host: IptablesHost, threads: NetnsThreads) -> None:
    """Whoever uninstalls takes out what any backend has left."""
    for each in KINDS:
        async with probes_in(each, host, threads) as former:
            await former.ensure(enrolled("a", V4))
    assert in_use(host) == set(KINDS)
    assert uninstall(host).removed
    assert not uninstall(host).removed
    assert in_use(host) == set()
    assert host.shell("ipset save") == ""


@pytest.mark.parametrize("verdict", ["drop", "counter accept"])
async def test_a_rule_about_the_set_is_not_yet_istios(
    host: IptablesHost, threads: NetnsThreads, verdict: str
) -> None:
    """L30: Istio's rules translate for the sets; somebody's filter for them is left alone."""
    istio(host, None)
    host.nft(f"add rule {TABLE} postrouting ip daddr @{SET_V4} {verdict}")
    async with probes_in(Variant.NFT, host, threads) as probes:
        await probes.ensure(enrolled("a", V4))
        await probes.prune([enrolled("a", V4)])
    assert in_use(host) == {None, Variant.NFT}
