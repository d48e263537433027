"""Where packets go: the same under every backend, in both families."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from ipaddress import ip_address

import pytest

from nodeagent.linux.netlink import Netlink
from nodeagent.netfilter.iptables_programs import Variant
from nodeagent.redirect.backend import Backend, Backends
from nodeagent.redirect.reply_path import add_entry, plan
from tests.eventually import PATIENCE
from tests.lab.apps import IPAddress, ask, conversation, echo_app, family_of
from tests.lab.lab import Lab
from tests.lab.pod import Pod
from tests.lab.spec import PROBE_V4, PROBE_V6, spec
from tests.lab.standin import MARK, udp_ask, udp_server

SPEC = spec(dns_capture=True, reroute_interfaces=("tap0",))
PROBE: Mapping[int, IPAddress] = {4: PROBE_V4, 6: PROBE_V6}
LOOPBACK: Mapping[int, IPAddress] = {4: ip_address("127.0.0.1"), 6: ip_address("::1")}
ANY: Mapping[int, IPAddress] = {4: ip_address("0.0.0.0"), 6: ip_address("::")}
TAP = {
    4: (ip_address("10.99.0.1"), ip_address("10.99.0.2")),
    6: (ip_address("fd99::1"), ip_address("fd99::2")),
}
IP_TRANSPARENT = {4: (socket.IPPROTO_IP, 19), 6: (socket.IPPROTO_IPV6, 75)}
FLUSH = {
    "nftables": ("nft flush chain inet istio-ambient-nat istio-output",),
    **{
        f"iptables-{variant}": (
            f"iptables-{variant} -t nat -F ISTIO_OUTPUT",
            f"ip6tables-{variant} -t nat -F ISTIO_OUTPUT",
        )
        for variant in Variant
    },
}


@dataclass(frozen=True, slots=True)
class Node:
    """A redirected pod, another one on the same bridge, and a machine behind the pod."""

    pod: Pod
    peer: Pod
    vm: Pod
    backend: Backend


@pytest.fixture(scope="module", params=[None, *Variant], ids=str)
def node(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Node]:
    with Lab() as lab, pytest.MonkeyPatch.context() as patch:
        patch.setenv("XTABLES_LOCKFILE", str(tmp_path_factory.mktemp("lock") / "lock"))
        backend = Backends.choose(request.param).chosen
        node = Node(lab.add_pod("pod"), lab.add_pod("peer"), lab.add_pod("vm"), backend)
        node.pod.shell(f"ip link add tap0 type veth peer name eth1 netns {node.vm.path}")
        node.vm.shell("ip link set eth1 up")
        node.pod.shell("ip link set tap0 up")
        for pod, device, end in ((node.pod, "tap0", 0), (node.vm, "eth1", 1)):
            pod.shell(f"ip addr add {TAP[4][end]}/24 dev {device}")
            pod.shell(f"ip addr add {TAP[6][end]}/64 dev {device} nodad")
        # The peer stands for the node, too, whose probes come from this address.
        node.peer.shell(f"ip addr add {PROBE[4]}/32 dev eth0")
        node.peer.shell(f"ip addr add {PROBE[6]}/128 dev eth0 nodad")
        node.pod.shell(*(f"ip route add {probe} dev eth0" for probe in PROBE.values()))
        node.pod.run(lambda: redirect(backend))
        yield node


def redirect(backend: Backend) -> None:
    with Netlink(socket.NETLINK_ROUTE) as netlink:
        for entry in plan(netlink, SPEC).missing:
            add_entry(netlink, entry)
    backend.ensure(SPEC)


@pytest.fixture
async def listening(node: Node, version: int) -> AsyncIterator[None]:
    """Something answers with its name on each port that matters."""
    listeners = {15001: "outbound", 15006: "inbound", 15008: "hbone", 15053: "dns", 8080: "app"}
    async with AsyncExitStack() as stack:
        for port, name in listeners.items():
            await stack.enter_async_context(echo_app(node.pod, ANY[version], port, name=name))
        for port in (53, 8080):
            await stack.enter_async_context(echo_app(node.peer, ANY[version], port, name="peer"))
        yield


def of(pod: Pod, version: int) -> IPAddress:
    return next(address for address in pod.addresses if address.version == version)


@dataclass(frozen=True, slots=True)
class Dial:
    """One connection from inside the pod, and who should answer."""

    target: str
    port: int
    mark: int | None
    way: str


@pytest.mark.parametrize(
    "dial",
    [
        Dial("peer", 8080, None, "outbound"),
        Dial("peer", 8080, 0x1000, "outbound"),
        Dial("peer", 8080, MARK, "peer"),
        Dial("peer", 8080, 0x1000 | MARK, "peer"),
        Dial("peer", 53, None, "dns"),
        Dial("peer", 53, MARK, "peer"),
        Dial("probe", 8080, None, "peer"),
        Dial("self", 8080, None, "app"),
        Dial("loopback", 8080, None, "app"),
    ],
    ids=str,
)
@pytest.mark.usefixtures("listening")
async def test_what_the_pod_dials(node: Node, version: int, dial: Dial) -> None:
    """Outbound traffic and DNS go to ztunnel; ztunnel's own, the probe's and the pod's do not."""
    address = {
        "peer": of(node.peer, version),
        "probe": PROBE[version],
        "self": of(node.pod, version),
        "loopback": LOOPBACK[version],
    }[dial.target]
    assert (await ask(node.pod, address, dial.port, mark=dial.mark))[0] == dial.way


@pytest.mark.parametrize(
    ("source", "port", "way"),
    [(None, 8080, "inbound"), (None, 15008, "hbone"), ("probe", 8080, "app")],
)
@pytest.mark.usefixtures("listening")
async def test_what_dials_the_pod(
    node: Node, version: int, source: str | None, port: int, way: str
) -> None:
    """Plaintext goes to ztunnel; HBONE reaches it directly, and a probe the app."""
    own = PROBE[version] if source else None
    assert (await ask(node.peer, of(node.pod, version), port, source=own))[0] == way


@pytest.mark.usefixtures("listening")
async def test_what_arrives_on_a_rerouted_interface(node: Node, version: int) -> None:
    """A virtual machine in the pod sends outbound traffic, whatever it dials."""
    assert (await ask(node.vm, TAP[version][0], 8080))[0] == "outbound"


@pytest.mark.usefixtures("listening")
async def test_replies_to_a_connection_from_the_clients_address(node: Node, version: int) -> None:
    """What the app answers to ztunnel's connection comes back to ztunnel, not to the client."""
    client = of(node.peer, version)
    sock = node.pod.socket(family_of(client), mark=MARK)
    with sock:
        sock.setsockopt(*IP_TRANSPARENT[version], 1)
        sock.bind((str(client), 0))
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(PATIENCE):
            await loop.sock_connect(sock, (str(of(node.pod, version)), 8080))
            greeting = await loop.sock_recv(sock, 100)
    name, seen = greeting.decode().split()[:2]
    assert (name, ip_address(seen)) == ("app", client)


async def test_dns_over_udp(node: Node, version: int) -> None:
    """Queries with the same addresses and ports go their own ways: zones keep them apart."""
    server = of(node.peer, version)
    async with (
        # Where REDIRECT sends it: a reply from another address is not taken for one.
        udp_server(node.pod, LOOPBACK[version], 15053, name="dns", mark=MARK),
        udp_server(node.peer, server, 53, name="peer"),
    ):
        assert await udp_ask(node.pod, server, 53, source_port=40053) == "dns"
        assert await udp_ask(node.pod, server, 53, source_port=40053, mark=MARK) == "peer"
        assert await udp_ask(node.pod, server, 53, source_port=40053) == "dns"


@pytest.mark.usefixtures("listening")
async def test_a_mend_does_not_cut_a_connection(node: Node, version: int) -> None:
    """L24: an open connection outlives a rewrite, and what is dialled next is redirected again."""
    server = of(node.peer, version)
    async with conversation(node.pod, server, 8080) as talk:
        node.pod.shell(*FLUSH[str(node.backend)])
        assert (await ask(node.pod, server, 8080))[0] == "peer"
        assert node.pod.run(lambda: node.backend.ensure(SPEC))
        assert await talk.echo("still here") == "still here"
        assert talk.name == "outbound"
    assert (await ask(node.pod, server, 8080))[0] == "outbound"
