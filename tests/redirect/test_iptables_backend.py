"""The iptables backend on the real kernel: what it writes, mends and leaves alone."""

import socket
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import structlog

from nodeagent.netfilter.errors import RulesError
from nodeagent.netfilter.iptables_programs import Variant, restore, save
from nodeagent.netfilter.rule import Family
from nodeagent.redirect.iptables_backend import IptablesBackend, read
from nodeagent.redirect.iptables_rules import render
from nodeagent.redirect.rules import RedirectSpec
from tests.lab.apps import ask, conversation, echo_app
from tests.lab.lab import Lab
from tests.lab.pod import Pod
from tests.lab.spec import spec
from tests.lab.standin import answering
from tests.lab.xtables import (
    FOREIGN,
    ISTIO,
    NO_FAMILY,
    NO_TABLE,
    SPEC,
    break_programs,
    inside,
    listing,
    section,
)

pytestmark = pytest.mark.usefixtures("xtables_lock")


@pytest.fixture(params=Variant)
def variant(request: pytest.FixtureRequest) -> Variant:
    return Variant(request.param)


@pytest.fixture
def backend(variant: Variant) -> IptablesBackend:
    return IptablesBackend(variant)


def with_counters(pod: Pod, variant: Variant) -> str:
    text = pod.shell(f"iptables-{variant}-save -c")
    return "\n".join(line for line in text.splitlines() if not line.startswith("#"))


def test_what_is_written_holds_and_is_left_alone(
    pod: Pod, variant: Variant, backend: IptablesBackend
) -> None:
    """L24: the second time nothing is written, so rules and counters are byte-identical."""
    assert inside(pod, backend.ensure, SPEC) == ("IPv4 rules are missing", "IPv6 rules are missing")
    assert inside(pod, backend.inspect, SPEC) == ()
    inside(pod, send_udp)
    before = with_counters(pod, variant)
    assert "[1:29] -A OUTPUT -j ISTIO_OUTPUT" in before
    assert inside(pod, backend.ensure, SPEC) == ()
    assert with_counters(pod, variant) == before


def send_udp() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"x", ("127.0.0.1", 9))


@pytest.mark.parametrize(
    ("wanted", "count"),
    [
        (SPEC, 34),
        (replace(SPEC, dns_capture=False), 26),
        (replace(SPEC, bypass_inbound=True), 30),
        (replace(SPEC, reroute_interfaces=()), 24),
        (replace(SPEC, ipv6=False), 17),
        (replace(SPEC, keep_open=True), 34),
        (replace(SPEC, leaving=True), 22),
    ],
)
def test_every_kind_of_rule_set_is_taken_by_the_kernel(
    pod: Pod, backend: IptablesBackend, variant: Variant, wanted: RedirectSpec, count: int
) -> None:
    """Each override is accepted, in both families, and compares equal to itself afterwards."""
    inside(pod, backend.ensure, wanted)
    found = inside(pod, read, variant)
    ours = sum(len(chain.rules) - 1 for chains in found.values() for chain in chains.values())
    assert ours == count
    assert inside(pod, backend.inspect, wanted) == ()


@pytest.mark.parametrize("name", ["-j", "--", "=@", "lo.-", "a" * 15])
def test_a_tenants_interface_name_is_only_a_name(
    pod: Pod, backend: IptablesBackend, variant: Variant, name: str
) -> None:
    """A name that looks like an option is the name of an interface in the kernel, too."""
    inside(pod, backend.ensure, replace(SPEC, reroute_interfaces=(name,)))
    rules = listing(pod, variant).splitlines()
    assert f"-A ISTIO_PRERT -i {name} -p tcp -j RETURN" in rules


BREAKAGES = {
    "-t nat -D ISTIO_OUTPUT 3": "table nat: chain ISTIO_OUTPUT has 6 rules instead of 7",
    "-t nat -F ISTIO_PRERT": "table nat: chain ISTIO_PRERT has another layout version",
    "-t mangle -D OUTPUT -j ISTIO_OUTPUT": "table mangle: chain ISTIO_OUTPUT has no jump",
    "-t mangle -A OUTPUT -j ISTIO_OUTPUT": "table mangle: chain ISTIO_OUTPUT is jumped to at 1, 2",
    "-t raw -I OUTPUT -j RETURN": "table raw: chain ISTIO_OUTPUT is jumped to at 2",
    "-t nat -R ISTIO_OUTPUT 2 -j RETURN": "table nat: chain ISTIO_OUTPUT rule 2 differs",
    "-t nat -A ISTIO_OUTPUT -p tcp -j ACCEPT": (
        "table nat: chain ISTIO_OUTPUT has 8 rules instead of 7"
    ),
}


@pytest.mark.parametrize("breakage", BREAKAGES)
@pytest.mark.parametrize("family", Family, ids=str)
def test_what_others_change_is_seen_and_mended(
    pod: Pod, variant: Variant, backend: IptablesBackend, family: Family, breakage: str
) -> None:
    """L1, L20: each difference is named, and gone after it; the other family is not written."""
    inside(pod, backend.ensure, SPEC)
    program = "iptables" if family is Family.V4 else "ip6tables"
    pod.shell(f"{program}-{variant} {breakage}")
    assert f"{family} {BREAKAGES[breakage]}" in inside(pod, backend.inspect, SPEC)
    found = inside(pod, backend.ensure, SPEC)
    assert {what.split()[0] for what in found} == {str(family)}
    assert inside(pod, backend.inspect, SPEC) == ()


def test_rules_of_another_layout_are_replaced(
    pod: Pod, variant: Variant, backend: IptablesBackend
) -> None:
    """L23: rules of an older layout, or Istio's own, are seen and become ours in place."""
    inside(pod, restore, variant, Family.V4, ISTIO[Family.V4])
    found = inside(pod, backend.inspect, SPEC)
    assert "IPv4 table nat: chain ISTIO_OUTPUT has another layout version" in found
    inside(pod, backend.ensure, SPEC)
    assert inside(pod, backend.inspect, SPEC) == ()


def test_what_is_no_longer_wanted_goes(
    pod: Pod, variant: Variant, backend: IptablesBackend
) -> None:
    """A pod without DNS capture and IPv6 loses table raw's rules and all IPv6 rules."""
    inside(pod, backend.ensure, SPEC)
    inside(pod, backend.ensure, replace(SPEC, ipv6=False, dns_capture=False))
    assert "ISTIO" not in listing(pod, variant, Family.V6)
    after = listing(pod, variant)
    assert "ISTIO" not in after[after.index("*raw") :].partition("COMMIT")[0]
    assert inside(pod, backend.inspect, replace(SPEC, ipv6=False, dns_capture=False)) == ()


@pytest.mark.parametrize("family", Family, ids=str)
def test_rules_of_others_are_untouched_to_the_byte(
    pod: Pod, variant: Variant, backend: IptablesBackend, family: Family
) -> None:
    """L8: enrollment, mending and removal leave everybody else's tables as they were."""
    inside(pod, restore, variant, family, FOREIGN)
    before = listing(pod, variant, family)
    inside(pod, backend.ensure, SPEC)
    inside(pod, backend.ensure, replace(SPEC, bypass_inbound=True))
    assert inside(pod, backend.remove)
    after = listing(pod, variant, family)
    for table in ("filter", "nat", "mangle"):
        assert section(after, table) == section(before, table)
    assert "ISTIO" not in section(after, "raw")


def test_removal_leaves_nothing_of_ours(
    pod: Pod, variant: Variant, backend: IptablesBackend
) -> None:
    """Rules, chains and jumps are gone in both families; the second removal finds nothing."""
    inside(pod, backend.ensure, SPEC)
    assert inside(pod, backend.is_installed)
    assert inside(pod, backend.remove)
    for family in Family:
        assert "ISTIO" not in listing(pod, variant, family)
    assert not inside(pod, backend.is_installed)
    assert not inside(pod, backend.remove)


def test_a_chain_that_anothers_rule_leads_to_does_not_stop_the_removal(
    pod: Pod, variant: Variant, backend: IptablesBackend
) -> None:
    """The kernel keeps such a chain; it is emptied, the rule stays, and nothing of ours is left."""
    inside(pod, backend.ensure, SPEC)
    pod.shell(
        f"iptables-{variant} -t nat -A OUTPUT -p udp -j ISTIO_OUTPUT",
        f"iptables-{variant} -t nat -A ISTIO_PRERT -j ISTIO_OUTPUT",
    )
    assert inside(pod, backend.remove)
    assert "-A OUTPUT -p udp -j ISTIO_OUTPUT" in listing(pod, variant)
    assert listing(pod, variant).count("ISTIO") == 2
    assert not inside(pod, backend.is_installed)
    inside(pod, backend.ensure, SPEC)
    assert inside(pod, backend.inspect, SPEC) == ()


def test_a_refused_write_leaves_what_was_there(pod: Pod, variant: Variant) -> None:
    """A refused table keeps its rules, and the error names the rule."""
    inside(pod, restore, variant, Family.V4, render(SPEC, Family.V4))
    before = listing(pod, variant)
    text = "*nat\n:ISTIO_OUTPUT - [0:0]\n-A ISTIO_OUTPUT -j NO_SUCH_CHAIN\nCOMMIT\n"
    with pytest.raises(RulesError, match=r"restore failed: .* at: .*(NO_SUCH_CHAIN|COMMIT)"):
        inside(pod, restore, variant, Family.V4, text)
    assert listing(pod, variant) == before


def test_what_iptables_cannot_list_stands_in_nobodys_way(pod: Pod) -> None:
    """L35: rules in nft's own language among iptables' are left alone, and ours are mended."""
    backend = IptablesBackend(Variant.NFT)
    inside(pod, backend.ensure, SPEC)
    rule = 'udp dport 99 ct state new log prefix "x" accept'
    pod.shell("nft -f -", stdin=f"table ip nat {{ chain OUTPUT {{ {rule}; }}; }}")
    before = pod.shell("nft list table ip nat")
    assert inside(pod, backend.ensure, SPEC) == ()
    assert pod.shell("nft list table ip nat") == before
    pod.shell("nft flush chain ip nat ISTIO_PRERT")
    assert inside(pod, backend.ensure, SPEC)
    assert inside(pod, backend.inspect, SPEC) == ()
    assert rule in pod.shell("nft list table ip nat")


def test_a_tenants_line_break_is_not_a_rule(
    pod: Pod, variant: Variant, backend: IptablesBackend
) -> None:
    """A comment that looks like our jump is neither taken for it nor deleted."""
    comment = "x\n-A OUTPUT -j ISTIO_OUTPUT\n"
    command = ["-t", "nat", "-A", "OUTPUT", "-m", "comment", "--comment", comment, "-j", "RETURN"]
    inside(pod, run, f"iptables-{variant}", *command)
    inside(pod, backend.ensure, SPEC)
    assert inside(pod, backend.inspect, SPEC) == ()
    assert inside(pod, backend.remove)
    assert '--comment "x\n-A OUTPUT -j ISTIO_OUTPUT\n" -j RETURN' in inside(
        pod, save, variant, Family.V4
    )


def run(*command: str) -> None:
    subprocess.run(command, check=True)


async def test_join_keeps_what_is_open(
    pod: Pod, other: Pod, version: int, backend: IptablesBackend
) -> None:
    """L28: with keep_open only what opens a connection is redirected, and no later packet."""
    far = other.addresses[version == 6]
    async with (
        echo_app(other, far, 8080, name="other"),
        answering(pod, version, 15001),
        conversation(pod, far, 8080) as talk,
    ):
        inside(pod, backend.ensure, spec(keep_open=True))
        assert await talk.echo("still here") == "still here"
        assert (await ask(pod, far, 8080))[0] == "ztunnel:15001"


async def test_leave_keeps_what_is_open(
    pod: Pod, other: Pod, version: int, backend: IptablesBackend
) -> None:
    """L28: while a pod leaves, what goes through ztunnel goes on, and new connections go direct."""
    far = other.addresses[version == 6]
    inside(pod, backend.ensure, spec())
    async with (
        echo_app(other, far, 8080, name="other"),
        answering(pod, version, 15001),
        conversation(pod, far, 8080) as through,
    ):
        assert through.name == "ztunnel:15001"
        inside(pod, backend.ensure, spec(leaving=True))
        assert (await ask(pod, far, 8080))[0] == "other"
        assert await through.echo("still here") == "still here"


def never_tried(directory: Path) -> RedirectSpec:
    """Return a spec whose rules were not tried out yet: that happens once for each spec."""
    return replace(SPEC, reroute_interfaces=(f"i{abs(hash(directory)) % 10**12}",))


@pytest.mark.parametrize("message", [NO_TABLE, NO_FAMILY], ids=["no table", "no family"])
def test_without_ip6tables_a_pod_without_ipv6_is_redirected(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variant: Variant, message: str
) -> None:
    """One family's fault stops the other's rules in no way; the setting is named, once."""
    pod = lab.add_pod("v4", ipv6=False)
    backend = IptablesBackend(variant)
    wanted = never_tried(tmp_path)
    with monkeypatch.context() as patch, structlog.testing.capture_logs() as logs:
        break_programs(tmp_path, patch, "ip6tables", f"{message} {tmp_path.name}")
        for _ in range(2):
            inside(pod, backend.ensure, wanted)
        assert inside(pod, backend.inspect, wanted) == ()
    assert "ISTIO_PRERT" in listing(pod, variant)
    [warning] = logs
    assert "AMBIENT_IPV6=false" in warning["event"]
    assert message in warning["reason"]


def test_without_ip6tables_a_pod_with_ipv6_fails_visibly(
    pod: Pod, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variant: Variant
) -> None:
    """It is not taken for redirected; what can be redirected is."""
    backend = IptablesBackend(variant)
    wanted = never_tried(tmp_path)
    with monkeypatch.context() as patch:
        break_programs(tmp_path, patch, "ip6tables", NO_TABLE)
        for _ in range(2):
            with pytest.raises(RulesError, match=r"IPv6 cannot be redirected: .*does not exist"):
                inside(pod, backend.ensure, wanted)
        assert "IPv6 cannot be redirected" in "".join(inside(pod, backend.inspect, wanted))
    assert "ISTIO_PRERT" in listing(pod, variant)
    inside(pod, backend.ensure, wanted)
    assert inside(pod, backend.inspect, wanted) == ()
