"""What the agent writes to ``iptables-restore`` for a pod."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

import pytest

from nodeagent.netfilter.iptables_save import Chain
from nodeagent.netfilter.iptables_tables import Chains
from nodeagent.netfilter.rule import Family, Hook, Table
from nodeagent.redirect.iptables_rules import render, render_removal
from nodeagent.redirect.rules import RedirectSpec

SPEC = RedirectSpec(
    ipv6=True,
    dns_capture=True,
    bypass_inbound=False,
    reroute_interfaces=("tap0",),
    probe_v4=IPv4Address("169.254.7.127"),
    probe_v6=IPv6Address("fd16:9254:7127:1337:ffff:ffff:ffff:ffff"),
)
OUTPUT = (Table.NAT, Hook.OUTPUT)
COMMENT = '-m comment --comment "nodeagent layout 1"'


def test_the_whole_rule_set_in_order() -> None:
    """Tables, chains and rules are those of the redirection table, explicit and first (L20)."""
    assert (
        render(SPEC, Family.V4)
        == f"""\
*mangle
:ISTIO_PRERT - [0:0]
-I PREROUTING 1 -j ISTIO_PRERT
-A ISTIO_PRERT {COMMENT}
-A ISTIO_PRERT -m mark --mark 0x539/0xfff -j CONNMARK --set-xmark 0x111/0xfff
-A ISTIO_PRERT -i tap0 -m connmark --mark 0x111/0xfff -j CONNMARK --restore-mark \
--nfmask 0xffffffff --ctmask 0xffffffff
:ISTIO_OUTPUT - [0:0]
-I OUTPUT 1 -j ISTIO_OUTPUT
-A ISTIO_OUTPUT {COMMENT}
-A ISTIO_OUTPUT -m connmark --mark 0x111/0xfff -m conntrack --ctdir ORIGINAL -j RETURN
-A ISTIO_OUTPUT -m connmark --mark 0x111/0xfff -j CONNMARK --restore-mark \
--nfmask 0xffffffff --ctmask 0xffffffff
:ISTIO_REROUTE - [0:0]
-I POSTROUTING 1 -j ISTIO_REROUTE
-A ISTIO_REROUTE {COMMENT}
-A ISTIO_REROUTE -o tap0 -m mark --mark 0x539/0xfff -m conntrack --ctdir ORIGINAL \
-j CONNMARK --set-xmark 0x111/0xfff
COMMIT
*raw
:ISTIO_PRERT - [0:0]
-I PREROUTING 1 -j ISTIO_PRERT
-A ISTIO_PRERT {COMMENT}
-A ISTIO_PRERT -p udp -m udp --sport 53 -m mark ! --mark 0x539/0xfff -j CT --zone 1
:ISTIO_OUTPUT - [0:0]
-I OUTPUT 1 -j ISTIO_OUTPUT
-A ISTIO_OUTPUT {COMMENT}
-A ISTIO_OUTPUT -p udp -m udp --dport 53 -m mark --mark 0x539/0xfff -j CT --zone 1
COMMIT
*nat
:ISTIO_PRERT - [0:0]
-I PREROUTING 1 -j ISTIO_PRERT
-A ISTIO_PRERT {COMMENT}
-A ISTIO_PRERT -i tap0 -p tcp -j REDIRECT --to-ports 15001
-A ISTIO_PRERT -i tap0 -p tcp -j RETURN
-A ISTIO_PRERT -s 169.254.7.127 -p tcp -j RETURN
-A ISTIO_PRERT ! -d 127.0.0.0/8 -p tcp -m tcp ! --dport 15008 -m mark ! --mark 0x539/0xfff \
-j REDIRECT --to-ports 15006
:ISTIO_OUTPUT - [0:0]
-I OUTPUT 1 -j ISTIO_OUTPUT
-A ISTIO_OUTPUT {COMMENT}
-A ISTIO_OUTPUT -d 169.254.7.127 -p tcp -j RETURN
-A ISTIO_OUTPUT ! -o lo -p udp -m udp --dport 53 -m mark ! --mark 0x539/0xfff \
-j REDIRECT --to-ports 15053
-A ISTIO_OUTPUT ! -d 127.0.0.0/8 -p tcp -m tcp --dport 53 -m mark ! --mark 0x539/0xfff \
-j REDIRECT --to-ports 15053
-A ISTIO_OUTPUT -p tcp -m mark --mark 0x111/0xfff -j RETURN
-A ISTIO_OUTPUT -o lo ! -d 127.0.0.0/8 -j RETURN
-A ISTIO_OUTPUT ! -d 127.0.0.0/8 -p tcp -m mark ! --mark 0x539/0xfff \
-j REDIRECT --to-ports 15001
COMMIT
"""
    )


def test_each_family_has_its_own_addresses() -> None:
    """The IPv6 text names no IPv4 address."""
    text = render(SPEC, Family.V6)
    assert "! -d ::1/128" in text
    assert "-s fd16:9254:7127:1337:ffff:ffff:ffff:ffff -p tcp -j RETURN" in text
    assert "169.254" not in text
    assert "127.0.0.0" not in text


def test_variants_leave_out_what_they_do_not_need() -> None:
    """No table raw without DNS, no inbound with bypass_inbound, nothing without IPv6."""
    assert "*raw" not in render(replace(SPEC, dns_capture=False), Family.V4)
    assert "15053" not in render(replace(SPEC, dns_capture=False), Family.V4)
    bypassing = render(replace(SPEC, bypass_inbound=True), Family.V4)
    assert "15006" not in bypassing
    assert "-s 169.254.7.127" not in bypassing
    assert "-i tap0" in bypassing
    assert render(replace(SPEC, ipv6=False), Family.V6) == ""


def installed(*jumps: int, held: bool = False) -> Chains:
    return {OUTPUT: Chain(rules=(b"accept",), jumps=jumps, held=held)}


def nat_output(text: str) -> list[str]:
    section = text[text.index("*nat") :]
    return [line for line in section.splitlines() if " OUTPUT " in line]


@pytest.mark.parametrize(
    ("jumps", "commands"),
    [
        ((1,), []),
        ((), ["-I OUTPUT 1 -j ISTIO_OUTPUT"]),
        ((2,), ["-D OUTPUT -j ISTIO_OUTPUT", "-I OUTPUT 1 -j ISTIO_OUTPUT"]),
        ((1, 3), ["-D OUTPUT -j ISTIO_OUTPUT"] * 2 + ["-I OUTPUT 1 -j ISTIO_OUTPUT"]),
    ],
)
def test_the_jump_is_moved_only_where_it_is_misplaced(
    jumps: tuple[int, ...], commands: list[str]
) -> None:
    """L20: the jump ends up once and first; one that is there is left alone."""
    assert nat_output(render(SPEC, Family.V4, replacing=installed(*jumps))) == commands


def test_tables_that_are_no_longer_wanted_go() -> None:
    """What is there of ours and not wanted is removed by the same text."""
    raw: Chains = {(Table.RAW, Hook.OUTPUT): Chain(rules=(), jumps=(1,), held=False)}
    text = render(replace(SPEC, dns_capture=False), Family.V4, replacing=raw)
    assert "*raw\n-D OUTPUT -j ISTIO_OUTPUT\n-F ISTIO_OUTPUT\n-X ISTIO_OUTPUT\nCOMMIT\n" in text


def test_a_chain_that_others_lead_to_is_emptied() -> None:
    """The kernel keeps a chain that a foreign rule leads to, and foreign rules are not touched."""
    assert render_removal(installed(1, held=True)) == (
        "*nat\n-D OUTPUT -j ISTIO_OUTPUT\n-F ISTIO_OUTPUT\nCOMMIT\n"
    )
    assert render_removal({}) == ""
