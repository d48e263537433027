"""A virtual machine behind the pod's own address: KubeVirt's masquerade binding, in packets.

The machine is a namespace of its own behind an interface of the pod. Whatever is sent to
the pod's address is translated to the machine's, as KubeVirt does it for a VM with
``sidecar.istio.io/inject``: also what a process of the pod sends, as ztunnel is one.
"""

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address

import pytest

from nodeagent.netfilter.iptables_programs import Variant
from nodeagent.redirect.backend import Backends
from nodeagent.redirect.in_pod import ensure, inspect, remove
from tests.lab import istio
from tests.lab.apps import IPAddress, ask, conversation, echo_app
from tests.lab.lab import Lab
from tests.lab.pod import Pod
from tests.lab.spec import PROBE_V4, PROBE_V6, spec
from tests.lab.standin import MARK, answering, passing_through

APP, LOCAL_APP = 8080, 9090
INTERFACE = "k6t-eth0"
GATEWAY: Mapping[int, IPAddress] = {4: ip_address("10.0.2.1"), 6: ip_address("fd10:0:2::1")}
GUEST: Mapping[int, IPAddress] = {4: ip_address("10.0.2.2"), 6: ip_address("fd10:0:2::2")}
PROBE: Mapping[int, IPAddress] = {4: PROBE_V4, 6: PROBE_V6}
IP = {4: "ip", 6: "ip -6"}
SPEC = spec(dns_capture=True, reroute_interfaces=(INTERFACE,))


@dataclass(frozen=True, slots=True)
class Node:
    """The pod, the machine behind it, and another pod on the same bridge."""

    pod: Pod
    vm: Pod
    peer: Pod
    backends: Backends
    variant: Variant | None

    def join(self) -> tuple[str, ...]:
        return self.pod.run(lambda: ensure(SPEC, self.backends))

    def leave(self) -> tuple[str, ...]:
        return self.pod.run(lambda: remove(self.backends))


def of(pod: Pod, version: int) -> IPAddress:
    return pod.addresses[version == 6]


@pytest.fixture(params=[None, *Variant], ids=str)
def node(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Node]:
    variant: Variant | None = request.param
    with Lab() as lab, pytest.MonkeyPatch.context() as patch:
        patch.setenv("XTABLES_LOCKFILE", str(tmp_path_factory.mktemp("lock") / "lock"))
        pod, vm, peer = (lab.add_pod(name) for name in ("pod", "vm", "peer"))
        pod.shell(f"ip link add {INTERFACE} type veth peer name ens3 netns {vm.path}")
        vm.shell("ip link set eth0 down", "ip link set ens3 up")
        pod.shell(
            f"ip link set {INTERFACE} up",
            "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1",
        )
        for version, length in ((4, 24), (6, 64)):
            nodad = "nodad" if version == 6 else ""
            pod.shell(f"ip addr add {GATEWAY[version]}/{length} dev {INTERFACE} {nodad}")
            vm.shell(
                f"ip addr add {GUEST[version]}/{length} dev ens3 {nodad}",
                f"{IP[version]} route replace default via {GATEWAY[version]} dev ens3",
            )
            peer.shell(f"ip addr add {PROBE[version]} dev eth0 {nodad}")
            pod.shell(f"{IP[version]} route add {PROBE[version]} dev eth0")
            translate(pod, version, variant)
        yield Node(pod, vm, peer, Backends.choose(variant), variant)


def translate(pod: Pod, version: int, variant: Variant | None) -> None:
    """Give the machine the pod's address, in the language of the backend that is tested.

    Port `LOCAL_APP` stays the pod's own.
    """
    own, guest = of(pod, version), GUEST[version]
    if variant is None:
        ip = "ip" if version == 4 else "ip6"
        to_the_pod = f"{ip} daddr {own} tcp dport != {{ {LOCAL_APP}, 15008 }} dnat to {guest};"
        pod.shell(
            "nft -f -",
            stdin=f"""
            table {ip} nat {{
                chain prerouting {{ type nat hook prerouting priority -100; {to_the_pod} }}
                chain output {{ type nat hook output priority -100; {to_the_pod} }}
                chain postrouting {{
                    type nat hook postrouting priority 100; {ip} saddr {guest} masquerade;
                }}
            }}""",
        )
        return
    program = f"{'iptables' if version == 4 else 'ip6tables'}-{variant} -t nat"
    match = f"-d {own} -p tcp -m multiport ! --dports {LOCAL_APP},15008"
    pod.shell(
        *(f"{program} -A {hook} {match} -j DNAT --to {guest}" for hook in ("PREROUTING", "OUTPUT")),
        f"{program} -A POSTROUTING -s {guest} -j MASQUERADE",
    )


@pytest.mark.parametrize("interfaces", [(), (INTERFACE,)], ids=["plain", "machine"])
def test_istio_can_take_the_place(pod: Pod, interfaces: tuple[str, ...]) -> None:
    """Istio's agent, in this agent's place again, can write its nftables rules where ours are."""
    wanted, backends = spec(dns_capture=True, reroute_interfaces=interfaces), Backends.choose(None)
    pod.run(lambda: ensure(wanted, backends))
    istio.take_over(pod)
    listing = pod.shell("nft list ruleset")
    assert "nodeagent layout" in listing, "the tables are those that were there"
    assert listing.count("redirect to :15006") == 2
    pod.run(lambda: ensure(wanted, backends))
    assert pod.run(lambda: inspect(wanted, backends)) == ()


async def test_what_dials_the_machine(node: Node, version: int) -> None:
    """It is reached past the mesh before, through ztunnel in it, from the client's address."""
    target, client = of(node.pod, version), of(node.peer, version)
    async with (
        echo_app(node.vm, GUEST[version], APP, name="vm") as vm,
        passing_through(node.pod, version, 15006) as ztunnel,
    ):
        assert (await ask(node.peer, target, APP))[0] == "vm"
        assert ztunnel.destinations == []
        node.join()
        assert node.pod.run(lambda: inspect(SPEC, node.backends)) == ()
        async with conversation(node.peer, target, APP) as talk:
            assert (talk.name, talk.source) == ("vm", client)
            assert await talk.echo("more than a packet" * 500) == "more than a packet" * 500
        assert ztunnel.destinations == [(target, APP)]
        assert {ip_address(host) for host, _ in vm.peers} == {client}
        node.leave()
        assert (await ask(node.peer, target, APP))[0] == "vm"
        assert len(ztunnel.destinations) == 1


async def test_what_the_machine_dials(node: Node, version: int) -> None:
    """It goes out directly before, and to ztunnel's outbound port in the mesh."""
    target = of(node.peer, version)
    async with (
        echo_app(node.peer, target, APP, name="peer") as peer,
        answering(node.pod, version, 15001) as ztunnel,
    ):
        assert (await ask(node.vm, target, APP))[0] == "peer"
        assert ztunnel.destinations == []
        node.join()
        async with conversation(node.vm, target, APP) as talk:
            assert talk.name == "ztunnel:15001"
            assert await talk.echo("hello") == "hello"
        assert ztunnel.destinations == [(target, APP)]
        assert len(peer.peers) == 1
        node.leave()
        assert (await ask(node.vm, target, APP))[0] == "peer"


async def test_a_process_of_the_pod_itself(node: Node, version: int) -> None:
    """Beside the machine an app of the pod is reached through ztunnel as in any pod."""
    node.join()
    target = of(node.pod, version)
    async with (
        echo_app(node.pod, target, LOCAL_APP) as app,
        passing_through(node.pod, version, 15006) as ztunnel,
    ):
        assert (await ask(node.peer, target, LOCAL_APP))[0] == "app"
    assert ztunnel.destinations == [(target, LOCAL_APP)]
    assert [ip_address(host) for host, _ in app.peers] == [of(node.peer, version)]


async def test_probes_of_the_machine(node: Node, version: int) -> None:
    """kubelet's probes reach the machine past ztunnel."""
    node.join()
    async with (
        echo_app(node.vm, GUEST[version], APP, name="vm"),
        answering(node.pod, version, 15006) as ztunnel,
    ):
        greeting = await ask(node.peer, of(node.pod, version), APP, source=PROBE[version])
    assert greeting[0] == "vm"
    assert ztunnel.destinations == []


async def test_hbone(node: Node, version: int) -> None:
    """Another ztunnel reaches this one, as it does in any pod."""
    node.join()
    async with echo_app(node.pod, of(node.pod, version), 15008, name="hbone"):
        assert (await ask(node.peer, of(node.pod, version), 15008))[0] == "hbone"


async def test_many_at_once(node: Node, version: int) -> None:
    """Both directions at the same time, from both ends."""
    node.join()
    inbound, outbound = of(node.pod, version), of(node.peer, version)
    async with (
        echo_app(node.vm, GUEST[version], APP, name="vm"),
        passing_through(node.pod, version, 15006),
        answering(node.pod, version, 15001),
    ):
        said = await asyncio.gather(
            *(ask(node.peer, inbound, APP) for _ in range(10)),
            *(ask(node.vm, outbound, APP) for _ in range(10)),
            ask(node.peer, inbound, APP, mark=MARK),
        )
    assert [greeting[0] for greeting in said] == ["vm"] * 10 + ["ztunnel:15001"] * 10 + ["vm"]


async def test_a_translation_that_comes_later(node: Node, version: int) -> None:
    """KubeVirt sets its own up when the pod is in the mesh already: nothing gets past ztunnel."""
    node.pod.shell("nft flush ruleset")
    node.join()
    translate(node.pod, version, node.variant)
    target = of(node.pod, version)
    async with (
        echo_app(node.vm, GUEST[version], APP, name="vm"),
        passing_through(node.pod, version, 15006) as ztunnel,
    ):
        assert (await ask(node.peer, target, APP))[0] == "vm"
    assert ztunnel.destinations == [(target, APP)]
