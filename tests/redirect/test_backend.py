"""Between backends: looks that change nothing, leftovers that go, a choice that stays."""

from ipaddress import ip_address
from pathlib import Path

import pytest

from nodeagent.netfilter.iptables_programs import Variant, restore
from nodeagent.netfilter.iptables_variant import find_variant
from nodeagent.netfilter.rule import Family
from nodeagent.redirect.backend import Backends, Swept
from nodeagent.redirect.iptables_backend import IptablesBackend
from tests.lab.apps import ask, conversation, echo_app
from tests.lab.pod import Pod
from tests.lab.xtables import FOREIGN, ISTIO, SPEC, inside, listing, marked, section

pytestmark = pytest.mark.usefixtures("xtables_lock")


def tables(pod: Pod) -> str:
    """The names of all tables, whoever made them."""
    return pod.shell(
        "cat /proc/thread-self/net/ip_tables_names /proc/thread-self/net/ip6_tables_names"
    ) + pod.shell("nft list tables")


@pytest.mark.parametrize("variant", Variant)
def test_a_single_chain_is_enough_to_be_seen(pod: Pod, variant: Variant) -> None:
    """L7: whatever part of a rule set was left over is found and goes."""
    backend = IptablesBackend(variant)
    for name in ("ISTIO_OUTPUT", "ISTIO_PRERT"):
        inside(pod, restore, variant, Family.V6, marked("raw", name))
        assert inside(pod, backend.is_installed)
        assert inside(pod, backend.remove)
        assert "ISTIO" not in listing(pod, variant, Family.V6)


def test_a_look_creates_nothing(pod: Pod, tmp_path: Path) -> None:
    """L7: neither looking, sweeping nor choosing makes a table, in either variant."""
    before = tables(pod)
    for variant in Variant:
        backend = IptablesBackend(variant)
        assert inside(pod, backend.inspect, SPEC) == (
            "IPv4 rules are missing",
            "IPv6 rules are missing",
        )
        assert not inside(pod, backend.is_installed)
        assert not inside(pod, backend.remove)
        assert inside(pod, Backends.choose(variant).sweep) == Swept()
    assert inside(pod, find_variant, None, str(tmp_path)) is Variant.NFT
    assert tables(pod) == before == ""


@pytest.mark.parametrize("family", Family, ids=str)
def test_a_look_at_existing_tables_adds_none(pod: Pod, family: Family) -> None:
    """L7: where there are legacy tables already, listing them makes no further one."""
    inside(pod, restore, Variant.LEGACY, family, "*nat\nCOMMIT\n")
    before = tables(pod)
    assert before == "nat\n"
    backend = IptablesBackend(Variant.LEGACY)
    assert not inside(pod, backend.is_installed)
    assert tables(pod) == before


@pytest.mark.parametrize("chosen", [None, *Variant], ids=str)
def test_leftovers_of_the_others_are_swept(pod: Pod, chosen: Variant | None) -> None:
    """L7, L8: what another backend or Istio left goes in place, and only the chosen one's stays."""
    others = [variant for variant in Variant if variant is not chosen]
    for variant in others:
        for family in Family:
            inside(pod, restore, variant, family, FOREIGN)
    before = [section(listing(pod, variant), "nat") for variant in others]
    for variant in others:
        for family in Family:
            inside(pod, restore, variant, family, ISTIO[family])
    backends = Backends.choose(chosen)
    inside(pod, backends.chosen.ensure, SPEC)
    names = {f"rules in iptables-{variant} are not wanted" for variant in others}
    assert set(inside(pod, backends.leftovers)) == names
    assert set(inside(pod, backends.sweep).removed) == names
    assert inside(pod, backends.leftovers) == ()
    assert [section(listing(pod, variant), "nat") for variant in others] == before
    assert inside(pod, backends.chosen.inspect, SPEC) == ()


@pytest.mark.parametrize("first", [None, *Variant], ids=str)
@pytest.mark.parametrize("second", [None, *Variant], ids=str)
def test_moving_from_one_backend_to_another(
    pod: Pod, first: Variant | None, second: Variant | None
) -> None:
    """L8: after the move the first one's rules are gone, the second one's are there."""
    inside(pod, Backends.choose(first).chosen.ensure, SPEC)
    backends = Backends.choose(second)
    inside(pod, backends.chosen.ensure, SPEC)
    inside(pod, backends.sweep)
    assert inside(pod, backends.chosen.inspect, SPEC) == ()
    if first is not second:
        assert not inside(pod, Backends.choose(first).chosen.is_installed)


async def test_a_move_cuts_no_connection(pod: Pod, other: Pod, version: int) -> None:
    """L8: what goes through ztunnel goes on through every move, and the next does so, too."""
    far = other.addresses[version == 6]
    any_address = ip_address("0.0.0.0" if version == 4 else "::")
    inside(pod, Backends.choose(None).chosen.ensure, SPEC)
    async with echo_app(pod, any_address, 15001), conversation(pod, far, 8080) as talk:
        for variant in (Variant.LEGACY, Variant.NFT, None):
            backends = Backends.choose(variant)
            inside(pod, backends.chosen.ensure, SPEC)
            for _ in ("beside the old rules", "without them"):
                assert await talk.echo("still here") == "still here"
                assert (await ask(pod, far, 8080))[0] == "app"
                inside(pod, backends.sweep)


@pytest.mark.parametrize("family", Family, ids=str)
def test_the_hosts_own_rules_decide(pod: Pod, tmp_path: Path, family: Family) -> None:
    """L7: an empty legacy table is no reason, kube-proxy's rules are, and the answer stays."""
    inside(pod, restore, Variant.LEGACY, family, ISTIO[family])
    assert inside(pod, find_variant, None, str(tmp_path)) is Variant.NFT
    pod.shell(f"{'ip' if family is Family.V4 else 'ip6'}tables-legacy -A OUTPUT -j ACCEPT")
    assert inside(pod, find_variant, None, str(tmp_path)) is Variant.NFT
    (tmp_path / "iptables-variant").unlink()
    assert inside(pod, find_variant, None, str(tmp_path)) is Variant.LEGACY
    assert (tmp_path / "iptables-variant").read_text() == "legacy\n"


def test_a_memory_that_cannot_be_read_is_made_anew(pod: Pod, tmp_path: Path) -> None:
    """Half a file, or a newer agent's: the host is asked again, and the answer kept."""
    (tmp_path / "iptables-variant").write_bytes(b"\xff?")
    assert inside(pod, find_variant, None, str(tmp_path)) is Variant.NFT
    assert (tmp_path / "iptables-variant").read_text() == "nft\n"
