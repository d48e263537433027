"""The rules of one pod as data: which packets, and where they go.

`RedirectSpec` says what one pod should have, `pod_rules` makes the rules of it. The backends
write them for nftables or iptables; docs/redirection.md explains each packet's way.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address

from nodeagent.mesh.overrides import is_interface
from nodeagent.netfilter.rule import (
    Accept,
    Direction,
    Family,
    Hook,
    Is,
    Mark,
    Not,
    Protocol,
    Redirect,
    RestoreMark,
    Return,
    Rule,
    SetConnmark,
    SetZone,
    Table,
)

OUTBOUND_PORT = 15001
INBOUND_PORT = 15006
HBONE_PORT = 15008
DNS_PORT = 15053

REPLY_TABLE = 100
"""Routing table that takes replies back to ztunnel."""
SPARE_TABLES = range(15100, 15116)
"""The first free one is taken where table 100 is somebody else's, the CNI plugin sbr's, say."""
REPLY_PRIORITY = 32764
"""Priority of the policy rule that leads to the table."""

PROXY_ZONE = 1
"""Conntrack zone of ztunnel's own DNS queries."""


ZTUNNEL_MARK = Mark(0x539)
"""On everything that ztunnel itself sends."""
REPLY_MARK = Mark(0x111)
"""On connections of ztunnel to the app, and on the app's replies on them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RedirectSpec:
    """The desired redirection of one pod.

    Raises ``ValueError`` for an interface name that could mean more than one
    interface, or more than an interface.
    """

    ipv6: bool
    dns_capture: bool
    bypass_inbound: bool
    """Traffic that arrives for the pod is not redirected."""
    reroute_interfaces: tuple[str, ...]
    """What arrives on them is outbound traffic: from VMs and nested containers."""
    probe_v4: IPv4Address
    probe_v6: IPv6Address
    keep_open: bool = False
    """Connections that were open before the rules go on past ztunnel until they close (L28)."""
    leaving: bool = False
    """New connections do not go to ztunnel; those that do already go on through ztunnel."""

    def __post_init__(self) -> None:
        for name in self.reroute_interfaces:
            if not is_interface(name):
                raise ValueError(f"not an interface name that can be in a rule: {name[:32]!r}")

    @property
    def families(self) -> tuple[Family, ...]:
        """The address families that are redirected."""
        return (Family.V4, Family.V6) if self.ipv6 else (Family.V4,)


def pod_rules(spec: RedirectSpec) -> tuple[Rule, ...]:
    """All rules of a pod; within one table and hook the first that matches wins."""
    rules = (
        *_mangle(spec),
        *_nat_prerouting(spec),
        *_nat_output(spec),
        *(_raw(spec) if spec.dns_capture else ()),
    )
    if spec.leaving:
        # The nat chains are left: with the last one, the kernel forgets its translations.
        rules = tuple(rule for rule in rules if not _sends_to_ztunnel(rule))
    elif spec.keep_open:
        # To conntrack, a connection from before it was there is new in mid-stream.
        rules = tuple(map(_opening_only, rules))
    return tuple(map(_left_to_others, rules)) if spec.reroute_interfaces else rules


def _sends_to_ztunnel(rule: Rule) -> bool:
    return rule.table is Table.NAT and isinstance(rule.verdict, Redirect | Return)


def _left_to_others(rule: Rule) -> Rule:
    # In iptables an accept is for the whole table: a machine's own translation, which comes
    # after our chain, would never be asked.
    left_alone = rule.table is Table.NAT and isinstance(rule.verdict, Accept)
    return replace(rule, verdict=Return()) if left_alone else rule


def _opening_only(rule: Rule) -> Rule:
    redirects_tcp = isinstance(rule.verdict, Redirect) and rule.protocol is Protocol.TCP
    return replace(rule, opening=True) if redirects_tcp else rule


def _mangle(spec: RedirectSpec) -> Iterator[Rule]:
    # ztunnel's connection to the app has the client's address as its source.
    yield Rule(
        table=Table.MANGLE,
        hook=Hook.PREROUTING,
        families=spec.families,
        mark=Is(ZTUNNEL_MARK),
        verdict=SetConnmark(REPLY_MARK),
    )
    if spec.reroute_interfaces:
        yield from _mangle_behind_interfaces(spec)
    # The app's reply on it must go to ztunnel, not to the client.
    yield Rule(
        table=Table.MANGLE,
        hook=Hook.OUTPUT,
        families=spec.families,
        connmark=Is(REPLY_MARK),
        verdict=RestoreMark(),
    )


def _mangle_behind_interfaces(spec: RedirectSpec) -> Iterator[Rule]:
    """Bring the replies of a virtual machine behind the pod back to ztunnel.

    Where the machine has the pod's address by a translation (KubeVirt's masquerade
    binding), ztunnel's connection to it leaves the pod, and the reply is forwarded: it is
    seen in neither of the places where an app's own reply is.
    """
    for name in spec.reroute_interfaces:
        yield Rule(
            table=Table.MANGLE,
            hook=Hook.POSTROUTING,
            families=spec.families,
            leaves_by=Is(name),
            mark=Is(ZTUNNEL_MARK),
            # What ztunnel answers to the machine carries its mark as well.
            direction=Direction.ORIGINAL,
            verdict=SetConnmark(REPLY_MARK),
        )
        yield Rule(
            table=Table.MANGLE,
            hook=Hook.PREROUTING,
            families=spec.families,
            arrives_on=Is(name),
            connmark=Is(REPLY_MARK),
            verdict=RestoreMark(),
        )
    # ztunnel's own packets on such a connection go to the machine: through table 100 they
    # would come back.
    yield Rule(
        table=Table.MANGLE,
        hook=Hook.OUTPUT,
        families=spec.families,
        connmark=Is(REPLY_MARK),
        direction=Direction.ORIGINAL,
        verdict=Return(),
    )


def _nat_prerouting(spec: RedirectSpec) -> Iterator[Rule]:
    for name in spec.reroute_interfaces:
        for verdict in (Redirect(OUTBOUND_PORT), Return()):
            yield Rule(
                table=Table.NAT,
                hook=Hook.PREROUTING,
                families=spec.families,
                arrives_on=Is(name),
                protocol=Protocol.TCP,
                verdict=verdict,
            )
    if spec.bypass_inbound:
        return
    for family in spec.families:
        yield Rule(
            table=Table.NAT,
            hook=Hook.PREROUTING,
            families=(family,),
            source=Is(_probe(spec, family)),
            protocol=Protocol.TCP,
            verdict=Accept(),
        )
    for family in spec.families:
        yield Rule(
            table=Table.NAT,
            hook=Hook.PREROUTING,
            families=(family,),
            destination=Not(family.value),
            protocol=Protocol.TCP,
            destination_port=Not(HBONE_PORT),
            mark=Not(ZTUNNEL_MARK),
            verdict=Redirect(INBOUND_PORT),
        )


def _nat_output(spec: RedirectSpec) -> Iterator[Rule]:
    for family in spec.families:
        yield Rule(
            table=Table.NAT,
            hook=Hook.OUTPUT,
            families=(family,),
            destination=Is(_probe(spec, family)),
            protocol=Protocol.TCP,
            verdict=Accept(),
        )
    if spec.dns_capture:
        yield from _nat_dns(spec)
    yield Rule(
        table=Table.NAT,
        hook=Hook.OUTPUT,
        families=spec.families,
        protocol=Protocol.TCP,
        mark=Is(REPLY_MARK),
        verdict=Accept(),
    )
    # An app that calls itself by its pod address.
    for family in spec.families:
        yield Rule(
            table=Table.NAT,
            hook=Hook.OUTPUT,
            families=(family,),
            leaves_by=Is("lo"),
            destination=Not(family.value),
            verdict=Accept(),
        )
    for family in spec.families:
        yield Rule(
            table=Table.NAT,
            hook=Hook.OUTPUT,
            families=(family,),
            destination=Not(family.value),
            protocol=Protocol.TCP,
            mark=Not(ZTUNNEL_MARK),
            verdict=Redirect(OUTBOUND_PORT),
        )


def _nat_dns(spec: RedirectSpec) -> Iterator[Rule]:
    yield Rule(
        table=Table.NAT,
        hook=Hook.OUTPUT,
        families=spec.families,
        leaves_by=Not("lo"),
        protocol=Protocol.UDP,
        destination_port=Is(53),
        mark=Not(ZTUNNEL_MARK),
        verdict=Redirect(DNS_PORT),
    )
    for family in spec.families:
        yield Rule(
            table=Table.NAT,
            hook=Hook.OUTPUT,
            families=(family,),
            destination=Not(family.value),
            protocol=Protocol.TCP,
            destination_port=Is(53),
            mark=Not(ZTUNNEL_MARK),
            verdict=Redirect(DNS_PORT),
        )


def _raw(spec: RedirectSpec) -> Iterator[Rule]:
    # The proxy's own DNS queries may have the app's addresses and ports.
    yield Rule(
        table=Table.RAW,
        hook=Hook.OUTPUT,
        families=spec.families,
        protocol=Protocol.UDP,
        destination_port=Is(53),
        mark=Is(ZTUNNEL_MARK),
        verdict=SetZone(PROXY_ZONE),
    )
    yield Rule(
        table=Table.RAW,
        hook=Hook.PREROUTING,
        families=spec.families,
        protocol=Protocol.UDP,
        source_port=Is(53),
        mark=Not(ZTUNNEL_MARK),
        verdict=SetZone(PROXY_ZONE),
    )


def _probe(spec: RedirectSpec, family: Family) -> IPv4Address | IPv6Address:
    return spec.probe_v4 if family is Family.V4 else spec.probe_v6
