"""A rule in nftables' language."""

from dataclasses import fields, replace
from ipaddress import IPv4Address
from typing import Any

from nodeagent.netfilter.nft import render_rule
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
    assert render_rule(replace(rule, **CONDITIONS)) == (
        'iifname "tap0" oifname != "lo" ip saddr 10.0.0.1 ip daddr != 127.0.0.0/8'
        " tcp sport 53 tcp dport != 15008 tcp flags & (fin | syn | rst | ack) == syn"
        " meta mark & 0xfff == 0x539 ct mark & 0xfff == 0x111 ct direction original"
        " counter accept"
    )


def test_a_rule_for_one_family_names_it() -> None:
    """The tables are of both families: a rule without an address would match the other's, too."""
    rule = Rule(table=Table.NAT, hook=Hook.OUTPUT, families=(Family.V6,), verdict=Accept())
    assert render_rule(rule) == "meta nfproto ipv6 counter accept"
    assert render_rule(replace(rule, families=tuple(Family))) == "counter accept"
