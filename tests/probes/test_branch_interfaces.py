"""Probes of pods with an AWS branch interface, on a host that is routed like such a node.

Three network namespaces: the node, a pod, and the VPC, which forwards between the node's
interface and the pod's branch interface and drops what has an address that it does not know.
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from structlog.testing import capture_logs

from nodeagent.netns.threads import NetnsThreads
from nodeagent.probes.branch_interfaces import BranchRule, parse
from nodeagent.probes.host_probes import HostProbes
from tests.eventually import eventually
from tests.lab.apps import IPAddress, ask, echo_app
from tests.lab.host import PROBE_V4, PROBE_V6, enrolled, probes_of, uninstall
from tests.lab.ipsets import IptablesHost, new_iptables_host
from tests.lab.pod import Pod

APP, SERVICE = 8080, 10250
POD: dict[int, IPAddress] = {4: IPv4Address("10.0.1.50"), 6: IPv6Address("fd00:1::50")}
NODE: dict[int, IPAddress] = {4: IPv4Address("10.0.0.10"), 6: IPv6Address("fd00::10")}
PROBE: dict[int, IPAddress] = {4: PROBE_V4, 6: PROBE_V6}
VETH, BRANCH = "vlan5f0c1a2b3c4", "vlan.eth.1"
IP = {4: "ip", 6: "ip -6"}

_NODE = f"""
link set lo up
link add eth0 address 2:0:0:0:0:0a type veth peer name e0 address 2:0:0:0:0:01 netns VPC
link add {BRANCH} address 2:0:0:0:0:0b type veth peer name b0 address 2:0:0:0:0:02 netns VPC
link add {VETH} address 2:0:0:0:0:0c type veth peer name eth0 address 2:0:0:0:0:32 netns POD
link set eth0 up
link set {BRANCH} up
link set {VETH} up
addr add {NODE[4]}/24 dev eth0
addr add {NODE[6]}/64 dev eth0 nodad
neigh add 10.0.0.1 lladdr 2:0:0:0:0:01 dev eth0 nud permanent
neigh add fd00::1 lladdr 2:0:0:0:0:01 dev eth0 nud permanent
neigh add 10.0.1.1 lladdr 2:0:0:0:0:02 dev {BRANCH} nud permanent
neigh add fe80::2 lladdr 2:0:0:0:0:02 dev {BRANCH} nud permanent
neigh add {POD[4]} lladdr 2:0:0:0:0:32 dev {VETH} nud permanent
neigh add {POD[6]} lladdr 2:0:0:0:0:32 dev {VETH} nud permanent
route add default via 10.0.0.1
route add ::/0 via fd00::1
route add 10.0.1.1 dev {BRANCH} table 101 scope link
route add default via 10.0.1.1 dev {BRANCH} onlink table 101
route add {POD[4]}/32 dev {VETH} table 101 scope link
route add ::/0 via fe80::2 dev {BRANCH} table 101
route add {POD[6]}/128 dev {VETH} table 101
"""
_RULES = f"""
rule add pref 20 lookup local
rule del pref 0 lookup local
rule add pref 10 iif {BRANCH} lookup 101
rule add pref 10 iif {VETH} lookup 101
"""
_POD = f"""
link set lo up
link set eth0 up
addr add {POD[4]}/32 dev eth0
addr add {POD[6]}/128 dev eth0 nodad
neigh add 169.254.1.1 lladdr 2:0:0:0:0:0c dev eth0 nud permanent
neigh add fe80::1 lladdr 2:0:0:0:0:0c dev eth0 nud permanent
route add 169.254.1.1 dev eth0 scope link
route add default via 169.254.1.1
route add ::/0 via fe80::1 dev eth0
"""
_VPC = f"""
link set lo up
link set e0 up
link set b0 up
addr add 10.0.0.1/24 dev e0
addr add fd00::1/64 dev e0 nodad
neigh add {NODE[4]} lladdr 2:0:0:0:0:0a dev e0 nud permanent
neigh add {NODE[6]} lladdr 2:0:0:0:0:0a dev e0 nud permanent
neigh add {POD[4]} lladdr 2:0:0:0:0:0b dev b0 nud permanent
neigh add {POD[6]} lladdr 2:0:0:0:0:0b dev b0 nud permanent
route add {POD[4]}/32 dev b0
route add {POD[6]}/128 dev b0
"""
_SECURITY = f"""
table inet vpc {{
    chain forward {{
        type filter hook prerouting priority -300;
        ip saddr {PROBE_V4} counter drop
        ip6 saddr {PROBE_V6} counter drop
        tcp dport {SERVICE} counter
    }}
}}
"""


@dataclass(frozen=True, slots=True)
class Node:
    """The three namespaces, and the first two as apps take them."""

    host: IptablesHost
    vpc: IptablesHost
    kubelet: Pod
    pod: Pod

    def rules(self, version: int) -> str:
        """The policy rules that carry this agent's protocol, as `ip` shows them."""
        lines = self.host.shell(f"{IP[version]} -N rule").splitlines()
        return "\n".join(line for line in lines if "proto 111" in line)

    def passed(self, what: str) -> int:
        """How many packets with `what` have come to the VPC."""
        for line in self.vpc.nft("list table inet vpc").splitlines():
            if what in line and "counter" in line:
                return int(line.split("packets")[1].split()[0])
        raise AssertionError(what)


@pytest.fixture
def node() -> Iterator[Node]:
    with new_iptables_host() as host, new_iptables_host() as vpc, new_iptables_host() as inside:
        paths = {
            name: f"/proc/{os.getpid()}/fd/{each.netns.fd}"
            for name, each in (("NODE", host), ("VPC", vpc), ("POD", inside))
        }
        text = _NODE
        for name, path in paths.items():
            text = text.replace(f"netns {name}", f"netns {path}")
        host.shell("ip -batch -", stdin=text)
        for option in ("", "-6 "):
            host.shell(f"ip {option}-batch -", stdin=_RULES)
        inside.shell("ip -batch -", stdin=_POD)
        vpc.shell("ip -batch -", stdin=_VPC)
        vpc.nft(_SECURITY)
        for each in (host, vpc):
            for setting in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
                _set(each, setting, "1")
            for link in ("all", "default"):
                _set(each, f"ipv4/conf/{link}/rp_filter", "0")
        _set(host, "ipv4/tcp_early_demux", "0")
        addresses = {"v4": POD[4], "v6": POD[6]}
        yield Node(
            host,
            vpc,
            Pod(name="node", path=paths["NODE"], link="", v4=NODE[4], v6=NODE[6]),  # type: ignore[arg-type]
            Pod(name="pod", path=paths["POD"], link=VETH, **addresses),  # type: ignore[arg-type]
        )


def _set(host: IptablesHost, setting: str, value: str) -> None:
    def write() -> None:
        with open(f"/proc/sys/net/{setting}", "w") as file:
            file.write(value)

    host.run(write)


@pytest.fixture
async def probes(node: Node, threads: NetnsThreads) -> AsyncIterator[HostProbes]:
    async with probes_of(node.host, threads) as probes:
        await probes.start()
        yield probes


@pytest.mark.parametrize("version", [4, 6])
async def test_a_probe_reaches_the_pod_and_its_reply_the_host(
    node: Node, probes: HostProbes, version: int
) -> None:
    """With the two rules, and with the probe address; without a packet in the VPC."""
    async with echo_app(node.pod, POD[version], APP):
        before = await ask(node.kubelet, POD[version], APP)
        assert ip_address(before[1]) == NODE[version]  # not enrolled: through the VPC
        await probes.ensure(enrolled("a", *POD.values()))
        after = await ask(node.kubelet, POD[version], APP)
        assert ip_address(after[1]) == PROBE[version]
    assert node.passed(f"saddr {PROBE[version]}") == 0


@pytest.mark.parametrize("version", [4, 6])
async def test_without_the_rules_a_probe_is_lost(
    node: Node, threads: NetnsThreads, version: int
) -> None:
    """The setting is off: the probe comes to the VPC, which drops it."""
    async with (
        probes_of(node.host, threads, branch_interfaces=False) as probes,
        echo_app(node.pod, POD[version], APP) as app,
    ):
        await probes.start()
        await probes.ensure(enrolled("a", *POD.values()))
        probe = asyncio.create_task(ask(node.kubelet, POD[version], APP))
        await eventually(lambda: node.passed(f"saddr {PROBE[version]}") > 0)
        probe.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await probe
        assert not app.peers
    assert not node.rules(version)


async def test_the_host_may_use_all_ports(node: Node, probes: HostProbes) -> None:
    """The kernel takes no range up to 65535 in a rule."""
    _set(node.host, "ipv4/ip_local_port_range", "1024 65535")
    await probes.ensure(enrolled("a", POD[4]))
    assert "dport 1024-65534" in node.rules(4)
    async with echo_app(node.pod, POD[4], APP):
        assert ip_address((await ask(node.kubelet, POD[4], APP))[1]) == PROBE_V4


@pytest.mark.parametrize("version", [4, 6])
async def test_what_the_pod_asks_of_the_host_passes_its_security_groups(
    node: Node, probes: HostProbes, version: int
) -> None:
    """A service of the host's is asked through the VPC, with the rules as without."""
    await probes.ensure(enrolled("a", *POD.values()))
    async with echo_app(node.kubelet, NODE[version], SERVICE):
        answer = await ask(node.pod, NODE[version], SERVICE)
    assert ip_address(answer[1]) == POD[version]
    assert node.passed(f"dport {SERVICE}") > 0


@pytest.mark.parametrize("version", [4, 6])
async def test_the_rules_stand_before_those_of_aws_and_go_with_the_pod(
    node: Node, probes: HostProbes, version: int
) -> None:
    """What was removed is put back at the next look, though nobody tells of it."""
    pod = enrolled("a", *POD.values())
    others = node.host.shell(f"{IP[version]} rule")
    assert len([each for each in await probes.ensure(pod) if "policy rule" in each]) == 4
    first, second = node.rules(version).splitlines()
    assert first.startswith("9:")
    assert second.startswith("9:")
    assert await probes.ensure(pod) == ()
    node.host.shell(f"{IP[version]} rule del pref 9")
    assert len(await probes.ensure(pod)) == 1
    assert sorted(node.rules(version).splitlines()) == sorted([first, second])
    await probes.remove(pod.uid)
    assert node.host.shell(f"{IP[version]} rule") == others


async def test_a_pod_that_has_another_veth_now_gets_its_rules_anew(
    node: Node, probes: HostProbes
) -> None:
    """What was right for the interface before is removed."""
    pod = enrolled("a", POD[4])
    await probes.ensure(pod)
    node.host.shell(f"ip link set {VETH} down", f"ip link set {VETH} name vlanother")
    node.host.shell(
        "ip link set vlanother up",
        "ip route add 10.0.1.50/32 dev vlanother table 101",
        f"ip rule del pref 10 iif {VETH}",
        "ip rule add pref 15 iif vlanother lookup 101",
    )
    await probes.ensure(pod)
    assert [line.split(":")[0] for line in node.rules(4).splitlines()] == ["14", "14"]
    assert "vlanother" in node.rules(4)
    assert VETH not in node.rules(4)


@pytest.mark.parametrize("off", ["setting", "sysctl"])
async def test_at_a_start_what_is_stale_goes(
    node: Node, threads: NetnsThreads, probes: HostProbes, off: str
) -> None:
    """Of a pod that has gone; and all of it where this is switched off. Others' rules stay."""
    await probes.ensure(enrolled("a", *POD.values()))
    node.host.shell("ip rule add pref 9 from 10.0.1.50 lookup 101 protocol 4")
    async with probes_of(node.host, threads) as later:
        await later.start()
        await later.prune([enrolled("a", *POD.values())])
        assert len(node.rules(4).splitlines()) == 2
    async with probes_of(node.host, threads) as later:
        await later.start()
        await later.prune([enrolled("b", "10.0.1.51")])
        assert not node.rules(4)
        assert not node.rules(6)
        await later.ensure(enrolled("a", *POD.values()))
    if off == "sysctl":
        _set(node.host, "ipv4/tcp_early_demux", "1")
    async with probes_of(node.host, threads, branch_interfaces=off != "setting") as later:
        await later.start()
        assert not node.rules(4)
        assert not node.rules(6)
    assert "from 10.0.1.50 lookup 101 proto" in node.host.shell("ip rule")


async def test_uninstall_removes_the_rules(node: Node, probes: HostProbes) -> None:
    """With the rest of what is on the host; each is named."""
    others = node.host.shell("ip rule")
    await probes.ensure(enrolled("a", *POD.values()))
    assert len([what for what in uninstall(node.host).removed if "policy rule" in what]) == 4
    assert node.host.shell("ip rule") == others
    assert not node.rules(6)


async def test_other_pods_and_other_nodes_get_no_rules(node: Node, probes: HostProbes) -> None:
    """A pod without a branch interface; and a node whose sysctl is 1."""
    await probes.ensure(enrolled("b", "10.0.1.51"))
    assert not node.rules(4)
    _set(node.host, "ipv4/tcp_early_demux", "1")
    await probes.ensure(enrolled("a", *POD.values()))
    assert not node.rules(4)


async def test_a_failure_keeps_nobody_out(node: Node, probes: HostProbes) -> None:
    """No place before the rule: the pod is in the sets, and one line says why not more."""
    node.host.shell(f"ip rule del pref 10 iif {VETH}", f"ip rule add pref 0 iif {VETH} lookup 101")
    pod = enrolled("a", POD[4])
    with capture_logs() as logs:
        assert await probes.ensure(pod) == (f"{POD[4]} is missing",)
        assert await probes.ensure(pod) == ()
    (warning,) = [line for line in logs if line["log_level"] == "warning"]
    assert f"the policy rule iif {VETH} has preference 0" in warning["reason"]
    node.host.shell(f"ip rule del pref 0 iif {VETH}", f"ip rule add pref 10 iif {VETH} lookup 101")
    assert len(await probes.ensure(pod)) == 2


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("ports", [None, (32768, 60999)])
def test_a_rule_is_read_as_it_is_written(version: int, ports: tuple[int, int] | None) -> None:
    """What is asked for is what is recognized; anything more makes it another's (L42)."""
    rule = BranchRule(POD[version], 9, "lo" if ports is None else VETH, 5101, ports)
    assert parse(rule.message()) == rule
    assert parse(rule.message() + bytes([8, 0, 10, 0, 1, 0, 0, 0])) is None
