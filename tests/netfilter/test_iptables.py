"""A rule in the language of iptables."""

from dataclasses import fields, replace
from ipaddress import IPv4Address
from typing import Any

from nodeagent.netfilter.iptables import render_rule
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
    whole = replace(rule, **CONDITIONS)
    assert render_rule(whole) == (
        "-i tap0 ! -o lo -s 10.0.0.1 ! -d 127.0.0.0/8 -p tcp"
        " -m tcp --sport 53 ! --dport 15008 --tcp-flags FIN,SYN,RST,ACK SYN"
        " -m mark --mark 0x539/0xfff -m connmark --mark 0x111/0xfff"
        " -m conntrack --ctdir ORIGINAL -j ACCEPT"
    )
