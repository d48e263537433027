"""The table for ztunnel's replies, where others have policy rules and routes of their own."""

import errno
import itertools
import re
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from ipaddress import ip_address

import pytest
from pyroute2.netlink.rtnl import RTM_GETRULE, RTM_NEWRULE

from nodeagent.linux.netlink import NLM_F_CREATE, NLM_F_EXCL, Netlink, attributes
from nodeagent.netfilter.errors import RulesError
from nodeagent.netfilter.rule import Family
from nodeagent.redirect import routes
from nodeagent.redirect.backend import Backend, Backends
from nodeagent.redirect.in_pod import ensure, inspect, remove
from nodeagent.redirect.reply_path import plan
from nodeagent.redirect.routes import PolicyRule
from tests.lab.apps import IPAddress, ask, echo_app
from tests.lab.lab import Lab
from tests.lab.pod import Pod
from tests.lab.spec import spec
from tests.lab.standin import answering, passing_through, udp_ask, udp_server

APP, DISTANT_PORT = 8080, 7000
MANY = 10_000
IP = {4: "ip", 6: "ip -6"}
NET1 = {
    4: (ip_address("10.9.0.7"), ip_address("10.9.0.1")),
    6: (ip_address("fd09::7"), ip_address("fd09::1")),
}
"""The pod's address on its second interface, and the gateway's there."""
DISTANT = {4: ip_address("192.0.2.9"), 6: ip_address("2001:db8:9::9")}
"""Only to be reached by that gateway."""

RULE = "rule add fwmark 0x111/0xfff pref 32764 lookup 100"
ROUTE = "route add local default dev lo table 100"


def routing(pod: Pod) -> str:
    """All policy rules and all routes, with everything that `ip` knows of them."""
    return "\n".join(
        re.sub(r"(expires|pref) \S+", "", pod.shell(f"ip -{version} -d {what}"))
        for version in (4, 6)
        for what in ("rule", "route show table all")
    )


def address(pod: Pod, version: int) -> IPAddress:
    return pod.addresses[0 if version == 4 else 1]


@pytest.fixture
def gateway(lab: Lab, pod: Pod) -> Pod:
    """The far end of the pod's second interface, routed as the plugin sbr routes it."""
    gateway = lab.add_pod("gateway")
    pod.shell(f"ip link add net1 type veth peer name net1 netns {gateway.path}")
    gateway.shell("ip link set net1 up")
    pod.shell("ip link set net1 up")
    for version, length in ((4, 24), (6, 64)):
        mine, theirs = NET1[version]
        for one, its in ((pod, mine), (gateway, theirs)):
            nodad = "nodad" if version == 6 else ""
            one.shell(f"ip addr add {its}/{length} dev net1 {nodad}")
        gateway.shell(f"ip addr add {DISTANT[version]} dev lo {nodad}")
        pod.shell(
            f"{IP[version]} route add default via {theirs} dev net1 table 100",
            f"{IP[version]} rule add from {mine} lookup 100",
        )
    return gateway


async def source_routed(pod: Pod, gateway: Pod, version: int) -> bool:
    """Whether what the pod sends from its second address leaves by its second interface."""
    mine, target = NET1[version][0], DISTANT[version]
    async with udp_server(gateway, target, DISTANT_PORT, name="distant"):
        return await udp_ask(pod, target, DISTANT_PORT, source=mine) == "distant"


async def test_source_based_routing(pod: Pod, other: Pod, gateway: Pod, version: int) -> None:
    """L30: a table 100 of the plugin sbr is used as before, and ztunnel's replies have another."""
    before = routing(pod)
    assert await source_routed(pod, gateway, version)
    pod.run(lambda: ensure(spec()))
    assert pod.run(lambda: inspect(spec())) == ()
    assert await source_routed(pod, gateway, version)
    target = address(pod, version)
    async with passing_through(pod, version, 15006), echo_app(pod, target, APP):
        name, source, _ = await ask(other, target, APP)
    assert (name, ip_address(source)) == ("app", address(other, version))
    added = set(routing(pod).splitlines()) - set(before.splitlines())
    assert {line.partition(" proto ")[0] for line in added} == {
        "32764:\tfrom all fwmark 0x111/0xfff lookup 15100",
        "local default dev lo table 15100",
    }
    assert set(before.splitlines()) <= set(routing(pod).splitlines())
    pod.run(remove)
    assert routing(pod) == before
    assert await source_routed(pod, gateway, version)


async def test_a_table_that_is_taken_later(pod: Pod, other: Pod, version: int) -> None:
    """Whoever comes into our table keeps it: replies move to the next, in one look."""
    pod.run(lambda: ensure(spec()))
    pod.shell(
        f"{IP[version]} route replace unreachable default table 100",
        f"{IP[version]} rule add from {address(other, version)} lookup 100",
    )
    family = "IPv4" if version == 4 else "IPv6"
    assert f"policy rule for {family} in table 15100 is missing" in pod.run(lambda: ensure(spec()))
    assert pod.run(lambda: inspect(spec())) == ()
    target = address(pod, version)
    async with passing_through(pod, version, 15006), echo_app(pod, target, APP):
        assert (await ask(other, target, APP))[0] == "app"
    assert "unreachable default" in pod.shell(f"{IP[version]} route show table 100")
    assert pod.run(remove)
    assert "unreachable default" in pod.shell(f"{IP[version]} route show table 100")
    assert "15100" not in routing(pod)


def test_the_choice_lasts(pod: Pod, version: int) -> None:
    """L24: when table 100 is free again, nothing that works is touched; lost parts come back."""
    foreign = f"rule add from {address(pod, version)} lookup 100"
    pod.shell(f"{IP[version]} {foreign}")
    pod.run(lambda: ensure(spec()))
    pod.shell(f"{IP[version]} {foreign.replace('add', 'del')}")
    before = routing(pod)
    assert pod.run(lambda: ensure(spec())) == ()
    for damage in ("rule del pref 32764", "route flush table 15100"):
        pod.shell(f"{IP[version]} {damage}")
        assert pod.run(lambda: ensure(spec()))
        assert sorted(routing(pod).splitlines()) == sorted(before.splitlines())
    assert pod.run(remove)
    assert "15100" not in routing(pod)


async def test_no_table_is_free(pod: Pod, other: Pod, version: int) -> None:
    """The pod fails closed, the error names the conflict, and what others have is untouched."""
    for table in (100, *range(15100, 15116)):
        pod.shell(f"{IP[version]} route add unreachable default table {table}")
    before = routing(pod)
    with pytest.raises(RulesError, match="table 100 has another route, to default"):
        pod.run(lambda: ensure(spec(ipv6=version == 6)))
    found = pod.run(lambda: inspect(spec(ipv6=version == 6)))
    assert len(found) == 1
    assert "replies have no table" in found[0]
    assert set(before.splitlines()) <= set(routing(pod).splitlines())
    target = address(pod, version)
    async with answering(pod, version, 15006), echo_app(pod, target, APP) as app:
        assert (await ask(other, target, APP))[0] == "ztunnel:15006"
    assert app.peers == []
    pod.run(remove)
    assert routing(pod) == before


TPROXY = ("rule add fwmark 1 lookup 100", ROUTE)
"""What the kernel's documentation of TPROXY has everybody do."""


@pytest.mark.parametrize("enrolled", [False, True], ids=["never", "enrolled"])
def test_the_kernels_own_recipe(pod: Pod, *, enrolled: bool) -> None:
    """L30: another's transparent proxy keeps its route, whether the pod was in the mesh or not."""
    pod.shell(*(f"{ip} {what}" for ip in IP.values() for what in TPROXY))
    before = routing(pod)
    if enrolled:
        pod.run(lambda: ensure(spec()))
        assert set(before.splitlines()) <= set(routing(pod).splitlines())
    assert bool(pod.run(remove)) == enrolled
    assert routing(pod) == before


@pytest.mark.parametrize("what", [(ROUTE,), (RULE,), (RULE, ROUTE)], ids=["route", "rule", "both"])
def test_nothing_goes_without_proof(pod: Pod, what: tuple[str, ...]) -> None:
    """L30: without our mark, or rules of ours or Istio's beside it, even our very pair stays."""
    pod.shell(*(f"{ip} {one}" for ip in IP.values() for one in what))
    before = routing(pod)
    assert pod.run(remove) == ()
    assert routing(pod) == before


def test_a_route_alone_is_nobodys_for_certain(pod: Pod) -> None:
    """A local default that no policy rule leads to may be half of another's set-up."""
    pod.shell(*(f"{ip} {ROUTE}" for ip in IP.values()))
    before = routing(pod)
    pod.run(lambda: ensure(spec()))
    assert "lookup 15100" in pod.shell("ip rule")
    pod.run(remove)
    assert routing(pod) == before


def test_our_mark_is_proof(pod: Pod) -> None:
    """L30: the rules may be gone already, whoever took them: what we have added goes."""
    before = routing(pod)
    pod.run(lambda: ensure(spec()))
    pod.shell("nft flush ruleset")
    assert len(pod.run(remove)) == 4
    assert routing(pod) == before


@dataclass(frozen=True)
class Dying:
    """A backend whose agent is killed right after the rules are gone."""

    backend: Backend = field(default_factory=lambda: Backends.choose(None).chosen)

    def __getattr__(self, name: str) -> object:
        return getattr(self.backend, name)

    def remove(self) -> bool:
        self.backend.remove()
        raise KeyboardInterrupt


@pytest.mark.parametrize("protocol", ["unspec", "boot", "static", "77"])
def test_any_protocol(pod: Pod, protocol: str) -> None:
    """L42: a policy rule is found and removed whatever its protocol says; Istio's has none.

    Also if the agent is killed between the removal of the rules, which prove whose the
    rest is, and the rest.
    """
    before = routing(pod)
    pod.run(lambda: ensure(spec()))
    for ip in IP.values():
        pod.shell(
            f"{ip} rule del pref 32764",
            f"{ip} {RULE} protocol {protocol}",
            f"{ip} route replace local default dev lo table 100",  # without our mark
        )
    assert pod.run(lambda: ensure(spec())) == ()
    with pytest.raises(KeyboardInterrupt):
        pod.run(lambda: remove(Backends(Dying(), ())))  # type: ignore[arg-type]
    assert "lookup 100" in pod.shell("ip rule")
    assert len(pod.run(remove)) == 4
    assert routing(pod) == before


NARROWER = "rule add iif eth0 fwmark 0x111/0xfff pref 32764 lookup 100"


def test_a_rule_with_one_more_condition(pod: Pod) -> None:
    """L42: to the kernel it answers to the description of ours: it is left alone all the same."""
    # With the protocol that the first version of this agent asked the kernel to delete.
    pod.shell(*(f"{ip} {NARROWER} protocol boot" for ip in IP.values()))
    before = routing(pod)
    pod.run(lambda: ensure(spec()))
    assert pod.run(remove)
    assert routing(pod) == before


def test_a_rule_with_one_more_condition_before_istios(pod: Pod) -> None:
    """Where the kernel cannot be told which of two is meant, none is removed, and it is said."""
    pod.run(lambda: ensure(spec(ipv6=False)))
    pod.shell("ip rule del pref 32764", f"ip {NARROWER}", f"ip {RULE}")
    with pytest.raises(RulesError, match="one of somebody else, with more conditions"):
        pod.run(remove)
    assert "fwmark 0x111/0xfff iif eth0" in pod.shell("ip rule")
    pod.shell(f"ip {NARROWER.replace('add', 'del')}")
    assert pod.run(remove)
    assert "lookup 100" not in pod.shell("ip rule")


def test_a_protocol_tells_two_rules_apart(pod: Pod) -> None:
    """L42: a rule with a protocol is removed from behind a narrower one without."""
    pod.run(lambda: ensure(spec(ipv6=False)))
    pod.shell("ip rule del pref 32764", f"ip {NARROWER}", f"ip {RULE} protocol boot")
    assert pod.run(remove)
    assert pod.shell("ip rule").count("lookup 100") == 1
    assert "fwmark 0x111/0xfff iif eth0" in pod.shell("ip rule")


@pytest.mark.parametrize(
    "rule",
    ["rule add from {} fwmark {} pref 7 lookup 100", "rule add from {} iif x{} lookup 15100"],
    ids=["mark", "interface"],
)
def test_ten_thousand_policy_rules(pod: Pod, rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """L36: however many rules and routes a pod has of its own, a look takes a moment."""
    alike = [f"10.{n // 250}.{n % 250}.1" for n in range(MANY)]
    batch(pod, [rule.format(each, n + 1) for n, each in enumerate(alike)])
    batch(pod, [f"route add local {each} dev lo table 100" for each in alike])
    batch(pod, [f"route add local {each} dev lo table 101 protocol 111" for each in alike])
    pod.run(lambda: ensure(spec()))
    assert pod.run(lambda: inspect(spec())) == ()
    # What costs is to take a rule apart: that is done at most once for each, to learn its table.
    taken_apart = itertools.count()

    def counted(data: bytes) -> Iterator[tuple[int, bytes]]:
        next(taken_apart)
        return attributes(data)

    with monkeypatch.context() as patch:
        patch.setattr(routes, "attributes", counted)
        pod.run(look)
    assert next(taken_apart) < 1.5 * MANY
    assert pod.run(remove)
    assert pod.shell("ip rule").count("lookup") >= MANY


def look() -> None:
    with Netlink(socket.NETLINK_ROUTE) as netlink:
        assert not plan(netlink, spec()).missing


def test_many_policy_rules_like_ours(pod: Pod) -> None:
    """Who makes hundreds of rules that look like ours is told; the pod fails closed."""
    sources = [f"10.1.{n}.1" for n in range(250)] + [f"10.2.{n}.1" for n in range(250)]
    batch(pod, [f"{RULE} from {source}" for source in sources])
    with pytest.raises(RulesError, match="500 policy rules for IPv4 have the preference"):
        pod.run(lambda: ensure(spec()))
    assert "redirect to :15006" in pod.shell("nft list ruleset")


def test_routing_that_cannot_be_read(pod: Pod) -> None:
    """L35: with a pod that always changes its policy rules, the rules are written all the same."""

    def look() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Netlink, "dump", changing(Netlink.dump))
            ensure(spec())

    with pytest.raises(RulesError, match="EAGAIN"):
        pod.run(look)
    assert "redirect to :15006" in pod.shell("nft list ruleset")
    pod.run(lambda: ensure(spec()))
    assert pod.run(lambda: inspect(spec())) == ()


def changing(dump: Callable[..., list[bytes]]) -> Callable[..., list[bytes]]:
    def work(netlink: Netlink, kind: int, body: bytes, **options: int) -> list[bytes]:
        if kind == RTM_GETRULE:
            raise OSError(errno.EAGAIN, "changed by others all the time")
        return dump(netlink, kind, body, **options)

    return work


def batch(pod: Pod, commands: list[str]) -> None:
    pod.shell("ip -batch -", stdin="\n".join(commands))


def test_istios_agent_takes_over(pod: Pod) -> None:
    """A node may go back: what Istio's agent adds is there already, and what it deletes goes."""
    before = routing(pod)
    pod.run(lambda: ensure(spec()))
    for family in Family:
        assert pod.run(lambda family=family: add_as_istio(family)) == errno.EEXIST  # type: ignore[misc]
    for ip in IP.values():
        pod.shell(f"{ip} route replace local default dev lo table 100")
        assert pod.shell(f"{ip} route show table 100").count("default") == 1
        pod.shell(
            f"{ip} rule del fwmark 0x111/0xfff pref 32764 lookup 100",
            f"{ip} route del local default dev lo table 100",
        )
    assert routing(pod) == before


def add_as_istio(family: Family) -> int | None:
    """Add its policy rule; it names no protocol. Returns what the kernel says."""
    try:
        with Netlink(socket.NETLINK_ROUTE) as netlink:
            message = PolicyRule(family).message()
            netlink.request(RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL, message)
    except OSError as error:
        return error.errno
    return None
