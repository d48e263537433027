"""What the agent writes to iptables-restore, and what it reads out of iptables-save."""

from dataclasses import fields, replace
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

import pytest

from nodeagent.netfilter.iptables import render_rule
from nodeagent.netfilter.iptables_programs import Variant
from nodeagent.netfilter.iptables_save import Chain, find_chains
from nodeagent.netfilter.iptables_tables import Chains
from nodeagent.netfilter.iptables_variant import find_variant, has_rules_of_others
from nodeagent.netfilter.rule import (
    Accept,
    Direction,
    Family,
    Hook,
    Is,
    Mark,
    Not,
    Protocol,
    Rule,
    Table,
)
from nodeagent.probes.iptables_rules import parse_chain
from nodeagent.redirect.iptables_rules import CHAINS, render, render_removal
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
HOOKS = {hook.upper(): name for hook, name in CHAINS.items()}
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


CONDITIONS: dict[str, Any] = {
    "arrives_on": Is("tap0"),
    "leaves_by": Not("lo"),
    "source": Is(IPv4Address("10.0.0.1")),
    "destination": Not(Family.V4.value),
    "protocol": Protocol.TCP,
    "opening": True,
    "source_port": Is(53),
    "destination_port": Not(15008),
    "mark": Is(Mark(0x539)),
    "connmark": Is(Mark(0x111)),
    "direction": Direction.ORIGINAL,
}


def test_no_condition_of_a_rule_is_passed_over() -> None:
    """A rule that says less than it should would redirect what must not be."""
    rule = Rule(table=Table.NAT, hook=Hook.OUTPUT, families=(Family.V4,), verdict=Accept())
    optional = {each.name for each in fields(Rule)} - {"table", "hook", "families", "verdict"}
    assert CONDITIONS.keys() == optional
    whole = replace(rule, **CONDITIONS)
    assert render_rule(whole) == (
        "-i tap0 ! -o lo -s 10.0.0.1 ! -d 127.0.0.0/8 -p tcp"
        " -m tcp --sport 53 ! --dport 15008 --tcp-flags FIN,SYN,RST,ACK SYN"
        " -m mark --mark 0x539/0xfff -m connmark --mark 0x111/0xfff"
        " -m conntrack --ctdir ORIGINAL -j ACCEPT"
    )


def parse(listing: str) -> dict[str, Chain[str]]:
    """Our chains in table nat."""
    return find_chains(listing, HOOKS)["nat"]


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
    """L20: the jump ends up once and first; one that stands so is left alone."""
    assert nat_output(render(SPEC, Family.V4, replacing=installed(*jumps))) == commands


def test_tables_that_are_no_longer_wanted_go() -> None:
    """What stands of ours and is not wanted is removed by the same text."""
    raw: Chains = {(Table.RAW, Hook.OUTPUT): Chain(rules=(), jumps=(1,), held=False)}
    text = render(replace(SPEC, dns_capture=False), Family.V4, replacing=raw)
    assert "*raw\n-D OUTPUT -j ISTIO_OUTPUT\n-F ISTIO_OUTPUT\n-X ISTIO_OUTPUT\nCOMMIT\n" in text


def test_a_chain_that_others_lead_to_is_emptied() -> None:
    """The kernel keeps a chain that a foreign rule leads to, and foreign rules are not touched."""
    assert render_removal(installed(1, held=True)) == (
        "*nat\n-D OUTPUT -j ISTIO_OUTPUT\n-F ISTIO_OUTPUT\nCOMMIT\n"
    )
    assert render_removal({}) == ""


LISTING = """\
# Generated by iptables-save v1.8.9
*filter
:OUTPUT ACCEPT [0:0]
:ISTIO_OUTPUT - [0:0]
-A OUTPUT -j ISTIO_OUTPUT
COMMIT
*nat
:PREROUTING ACCEPT [3:180]
:OUTPUT ACCEPT [0:0]
:ISTIO_OUTPUT - [0:0]
:ISTIO_OUTPUT_OTHER - [0:0]
-A OUTPUT -p udp -j RETURN
-A OUTPUT -j ISTIO_OUTPUT
-A ISTIO_OUTPUT -p tcp -j ACCEPT
-A ISTIO_OUTPUT
-A ISTIO_OUTPUT_OTHER -j RETURN
COMMIT
"""


def test_reading_finds_our_chains_and_where_they_are_called() -> None:
    """Rules and the jump's position are read; tables and chains of others are not ours."""
    assert parse(LISTING) == {
        "ISTIO_OUTPUT": Chain(
            rules=("-A ISTIO_OUTPUT -p tcp -j ACCEPT", "-A ISTIO_OUTPUT"), jumps=(2,), held=False
        )
    }


@pytest.mark.parametrize(
    "rule",
    [
        "-A OUTPUT -p tcp -j ISTIO_OUTPUT",
        "-A OUTPUT -g ISTIO_OUTPUT",
        "-A ISTIO_OUTPUT_OTHER -j ISTIO_OUTPUT",
        "-A PREROUTING -j ISTIO_OUTPUT",
    ],
)
def test_a_rule_of_others_that_leads_to_our_chain_holds_it(rule: str) -> None:
    """Only the plain jump from the hook's own chain is ours."""
    found = parse(LISTING.replace("-A OUTPUT -j ISTIO_OUTPUT", rule))["ISTIO_OUTPUT"]
    assert (found.jumps, found.held) == ((), True)


def test_an_empty_chain_that_others_hold_is_not_ours() -> None:
    """After a removal that could not delete the chain, nothing is left to remove."""
    listing = "*nat\n:OUTPUT ACCEPT [0:0]\n:ISTIO_OUTPUT - [0:0]\n"
    assert parse(f"{listing}-A OUTPUT -p tcp -j ISTIO_OUTPUT\nCOMMIT\n") == {}
    assert parse(f"{listing}COMMIT\n") == {"ISTIO_OUTPUT": Chain(rules=(), jumps=(), held=False)}


LINE_BREAKS = ("\n", "\r", "\v", "\f", "\x1c", "\x85", "\u2028")
"""All that ``str.splitlines`` takes for the end of a line."""


@pytest.mark.parametrize("line_break", LINE_BREAKS, ids=ascii)
def test_a_tenants_comment_cannot_forge_a_statement(line_break: str) -> None:
    """iptables-save writes a line break in a comment as it is; what follows is no rule."""
    forged = line_break.join(('"\\"x', "-A OUTPUT -j ISTIO_OUTPUT", '"'))
    rule = f"-A OUTPUT -m comment --comment {forged} -j RETURN\n"
    listing = LISTING.replace("-A OUTPUT -p udp -j RETURN\n", rule)
    assert parse(listing)["ISTIO_OUTPUT"].jumps == (2,)


@pytest.mark.parametrize("line_break", LINE_BREAKS, ids=ascii)
def test_nor_one_about_the_hosts_probes(line_break: str) -> None:
    """The host's chain is read by the same parser."""
    forged = line_break.join(('"x', "-A POSTROUTING -j ISTIO_POSTRT", "-A ISTIO_POSTRT -j DROP"))
    chain = parse_chain(
        f"""\
*nat
:POSTROUTING ACCEPT [0:0]
:ISTIO_POSTRT - [0:0]
-A POSTROUTING -m comment --comment {forged}{line_break}" -j MASQUERADE
-A POSTROUTING -j ISTIO_POSTRT
-A ISTIO_POSTRT -p tcp -j SNAT --to-source 169.254.7.127
COMMIT
"""
    )
    assert chain == Chain(
        rules=("-A ISTIO_POSTRT -p tcp -j SNAT --to-source 169.254.7.127",), jumps=(2,)
    )


@pytest.mark.parametrize(
    ("statements", "expected"),
    [
        (":OUTPUT ACCEPT [0:0]", False),
        (":OUTPUT ACCEPT [0:0]\n:ISTIO_POSTRT - [0:0]\n-A POSTROUTING -j ISTIO_POSTRT", False),
        (":OUTPUT ACCEPT [0:0]\n-A OUTPUT -j RETURN", True),
        (":OUTPUT ACCEPT [0:0]\n:KUBE-KUBELET-CANARY - [0:0]", True),
    ],
)
def test_whose_rules_say_what_the_host_uses(statements: str, expected: bool) -> None:
    """L7: neither an empty table, which a look makes, nor our own rules say anything."""
    assert has_rules_of_others(f"*nat\n{statements}\nCOMMIT\n") is expected


@pytest.mark.parametrize("variant", Variant)
def test_what_was_found_out_is_remembered(tmp_path: Path, variant: Variant) -> None:
    """L7: the choice at the next start is the same, whatever the host has by then."""
    (tmp_path / "iptables-variant").write_text(f"{variant}\n")
    assert find_variant(None, str(tmp_path)) is variant


def test_a_forced_variant_is_not_remembered(tmp_path: Path) -> None:
    """A setting that is taken away again leaves no trace."""
    assert find_variant(Variant.LEGACY, str(tmp_path)) is Variant.LEGACY
    assert list(tmp_path.iterdir()) == []
