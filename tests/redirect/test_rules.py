"""The rules as data: which there are, in which order, for which pod."""

import pytest

from nodeagent.netfilter.rule import (
    Accept,
    Direction,
    Family,
    Hook,
    Is,
    Not,
    Redirect,
    RestoreMark,
    Return,
    Rule,
    SetConnmark,
    SetZone,
    Table,
    Verdict,
)
from nodeagent.redirect.rules import REPLY_MARK, ZTUNNEL_MARK, pod_rules
from tests.lab.spec import PROBE_V4, PROBE_V6, spec


def chain(rules: tuple[Rule, ...], table: Table, hook: Hook) -> list[Rule]:
    return [rule for rule in rules if rule.table is table and rule.hook is hook]


def verdicts(rules: list[Rule]) -> list[Verdict]:
    return [rule.verdict for rule in rules]


def test_inbound_order() -> None:
    """Rerouted interfaces come before the probes, and the probes before the capture."""
    rules = pod_rules(spec(ipv6=False, reroute_interfaces=("vm0", "vm1")))
    assert verdicts(chain(rules, Table.NAT, Hook.PREROUTING)) == [
        Redirect(15001),
        Return(),
        Redirect(15001),
        Return(),
        Return(),  # to the machine's own translation, where that is in the same chain
        Redirect(15006),
    ]


def test_outbound_order() -> None:
    """DNS and what must go direct are told apart before the rest goes to ztunnel."""
    rules = chain(pod_rules(spec(ipv6=False, dns_capture=True)), Table.NAT, Hook.OUTPUT)
    assert verdicts(rules) == [
        Accept(),
        Redirect(15053),
        Redirect(15053),
        Accept(),
        Accept(),
        Redirect(15001),
    ]
    assert [rule.protocol for rule in rules] == ["tcp", "udp", "tcp", "tcp", None, "tcp"]


def test_marks() -> None:
    """The connection of ztunnel's packet is remembered, and its reply marked."""
    rules = pod_rules(spec())
    (inbound,) = chain(rules, Table.MANGLE, Hook.PREROUTING)
    (outbound,) = chain(rules, Table.MANGLE, Hook.OUTPUT)
    assert (inbound.mark, inbound.verdict) == (Is(ZTUNNEL_MARK), SetConnmark(REPLY_MARK))
    assert (outbound.connmark, outbound.verdict) == (Is(REPLY_MARK), RestoreMark())
    assert (ZTUNNEL_MARK.value, REPLY_MARK.value) == (1337, 0x111)
    assert ZTUNNEL_MARK.mask == REPLY_MARK.mask == 0xFFF


def test_marks_of_a_machine_behind_the_pod() -> None:
    """Only what ztunnel itself opens to it is remembered, and only where interfaces are named."""
    rules = pod_rules(spec(reroute_interfaces=("vm0",)))
    (opened,) = chain(rules, Table.MANGLE, Hook.POSTROUTING)
    _, replied = chain(rules, Table.MANGLE, Hook.PREROUTING)
    kept, restored = chain(rules, Table.MANGLE, Hook.OUTPUT)
    assert (opened.leaves_by, opened.mark) == (Is("vm0"), Is(ZTUNNEL_MARK))
    assert (opened.direction, opened.verdict) == (Direction.ORIGINAL, SetConnmark(REPLY_MARK))
    assert (replied.arrives_on, replied.connmark) == (Is("vm0"), Is(REPLY_MARK))
    assert replied.verdict == restored.verdict == RestoreMark()
    assert (kept.connmark, kept.direction) == (Is(REPLY_MARK), Direction.ORIGINAL)
    assert kept.verdict == Return()
    assert not any(rule.direction for rule in pod_rules(spec(dns_capture=True)))
    assert not chain(pod_rules(spec()), Table.MANGLE, Hook.POSTROUTING)


def test_the_way_of_replies_outlives_the_redirection() -> None:
    """A pod that leaves sends nothing new to ztunnel, and its machine's replies get back."""
    rules = pod_rules(spec(reroute_interfaces=("vm0",), leaving=True))
    mangle = [rule for rule in rules if rule.table is Table.MANGLE]
    assert mangle == [
        rule for rule in pod_rules(spec(reroute_interfaces=("vm0",))) if rule.table is Table.MANGLE
    ]
    assert not any(isinstance(rule.verdict, Redirect) for rule in rules)
    assert chain(rules, Table.NAT, Hook.PREROUTING)


def test_ingress_mode_has_no_inbound_capture() -> None:
    """Only what arrives on a rerouted interface is left of inbound."""
    captured = pod_rules(spec(reroute_interfaces=("vm0",)))
    bypassing = pod_rules(spec(bypass_inbound=True, reroute_interfaces=("vm0",)))
    assert verdicts(chain(bypassing, Table.NAT, Hook.PREROUTING)) == [Redirect(15001), Return()]
    assert chain(bypassing, Table.NAT, Hook.OUTPUT) == chain(captured, Table.NAT, Hook.OUTPUT)


def test_raw_only_with_dns_capture() -> None:
    """Zones are for DNS alone."""
    assert not any(rule.table is Table.RAW for rule in pod_rules(spec()))
    rules = pod_rules(spec(dns_capture=True))
    (outbound,) = chain(rules, Table.RAW, Hook.OUTPUT)
    (inbound,) = chain(rules, Table.RAW, Hook.PREROUTING)
    assert outbound.verdict == inbound.verdict == SetZone(1)
    assert (outbound.destination_port, outbound.mark) == (Is(53), Is(ZTUNNEL_MARK))
    assert (inbound.source_port, inbound.mark) == (Is(53), Not(ZTUNNEL_MARK))


def test_every_address_is_of_the_rules_family() -> None:
    """A rule with an address is for one family, and each has a twin in the other."""
    addresses: dict[Family, int] = {Family.V4: 0, Family.V6: 0}
    for rule in pod_rules(spec(dns_capture=True)):
        for condition in (rule.source, rule.destination):
            if condition is not None:
                (family,) = rule.families
                assert condition.value.version == family.value.version
                addresses[family] += 1
    assert addresses[Family.V4] == addresses[Family.V6] > 0


def test_without_ipv6_no_rule_is_for_it() -> None:
    """Also the rules without an address are for IPv4 alone then."""
    assert {rule.families for rule in pod_rules(spec(ipv6=False, dns_capture=True))} == {
        (Family.V4,)
    }


def test_probe_addresses_are_the_pods_own() -> None:
    """The addresses in the rules are those of the setting."""
    sources = [rule.source for rule in pod_rules(spec()) if rule.source]
    assert sources == [Is(PROBE_V4), Is(PROBE_V6)]


@pytest.mark.parametrize(
    "name",
    ["", "x" * 16, "a b", "a/b", 'a"', "eth*", "eth+", "a\\", "a\n", ".", "..", "a;b", "ä" * 8],
)
def test_names_that_could_say_more_are_refused(name: str) -> None:
    """A wildcard, a quote or white space in a tenant's annotation never reaches a rule."""
    with pytest.raises(ValueError, match="interface name"):
        spec(reroute_interfaces=(name,))
