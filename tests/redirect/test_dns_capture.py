"""Where DNS goes in a redirected pod."""

from ipaddress import ip_address

from nodeagent.redirect.in_pod import ensure
from tests.lab.apps import IPAddress, ask, echo_app
from tests.lab.counters import counters
from tests.lab.pod import Pod
from tests.lab.spec import spec
from tests.lab.standin import MARK, answering, udp_ask, udp_server


def loopback(version: int) -> IPAddress:
    """Where ztunnel listens for DNS: the kernel redirects a pod's own packets to there."""
    return ip_address("127.0.0.1" if version == 4 else "::1")


def resolver(other: Pod, version: int) -> IPAddress:
    return other.addresses[0 if version == 4 else 1]


async def test_udp_goes_to_ztunnel(pod: Pod, other: Pod, version: int) -> None:
    """An app's query by UDP is answered by port 15053, as if by the resolver."""
    pod.run(lambda: ensure(spec(dns_capture=True)))
    upstream = resolver(other, version)
    async with (
        udp_server(pod, loopback(version), 15053, name="ztunnel", mark=MARK),
        udp_server(other, upstream, 53, name="resolver"),
    ):
        assert await udp_ask(pod, upstream, 53) == "ztunnel"


async def test_tcp_goes_to_ztunnel(pod: Pod, other: Pod, version: int) -> None:
    """An app's query by TCP goes to port 15053, not to 15001."""
    pod.run(lambda: ensure(spec(dns_capture=True)))
    upstream = resolver(other, version)
    async with answering(pod, version, 15053) as ztunnel, answering(pod, version, 15001):
        assert (await ask(pod, upstream, 53))[0] == "ztunnel:15053"
    assert ztunnel.destinations == [(upstream, 53)]


async def test_other_udp_is_untouched(pod: Pod, other: Pod, version: int) -> None:
    """Only DNS is redirected of what is not TCP."""
    pod.run(lambda: ensure(spec(dns_capture=True)))
    peer = resolver(other, version)
    async with udp_server(other, peer, 5353, name="peer"):
        assert await udp_ask(pod, peer, 5353) == "peer"


async def test_a_resolver_on_loopback_is_untouched(pod: Pod, version: int) -> None:
    """A resolver in the pod itself, anywhere in 127.0.0.0/8, keeps its clients."""
    pod.run(lambda: ensure(spec(dns_capture=True)))
    local = ip_address("127.0.0.53" if version == 4 else "::1")
    async with (
        udp_server(pod, loopback(version), 15053, name="ztunnel", mark=MARK),
        udp_server(pod, local, 53, name="local"),
        answering(pod, version, 15053),
        echo_app(pod, local, 53, name="local"),
    ):
        assert await udp_ask(pod, local, 53) == "local"
        assert (await ask(pod, local, 53))[0] == "local"


async def test_ztunnels_query_is_not_the_apps(pod: Pod, other: Pod, version: int) -> None:
    """ztunnel's own query reaches the resolver though an app's had the same ports."""
    pod.run(lambda: ensure(spec(dns_capture=True)))
    upstream = resolver(other, version)
    async with (
        udp_server(pod, loopback(version), 15053, name="ztunnel", mark=MARK),
        udp_server(other, upstream, 53, name="resolver"),
    ):
        assert await udp_ask(pod, upstream, 53, source_port=40000) == "ztunnel"
        assert await udp_ask(pod, upstream, 53, source_port=40000, mark=MARK) == "resolver"
        assert await udp_ask(pod, upstream, 53, source_port=40000) == "ztunnel"
    zoned = [count for rule, count in counters(pod).items() if "ct zone set 1" in rule]
    assert len(zoned) == 2
    assert all(zoned)


async def test_without_capture(pod: Pod, other: Pod, version: int) -> None:
    """A pod that wants no DNS capture asks its resolver directly, and has no raw table."""
    pod.run(lambda: ensure(spec(dns_capture=True)))
    pod.run(lambda: ensure(spec(dns_capture=False)))
    upstream = resolver(other, version)
    async with (
        udp_server(pod, loopback(version), 15053, name="ztunnel", mark=MARK),
        udp_server(other, upstream, 53, name="resolver"),
    ):
        assert await udp_ask(pod, upstream, 53) == "resolver"
    assert "istio-ambient-raw" not in pod.shell("nft list tables")
