"""Where packets go in a redirected pod: real connections, both address families."""

from ipaddress import ip_address

import pytest

from nodeagent.redirect.in_pod import ensure, inspect, remove
from nodeagent.redirect.rules import RedirectSpec
from tests.lab.apps import IPAddress, ask, conversation, echo_app
from tests.lab.counters import counters
from tests.lab.lab import Lab
from tests.lab.pod import Pod
from tests.lab.spec import PROBE_V4, PROBE_V6, spec
from tests.lab.standin import MARK, answering, passing_through

APP = 8080


def redirect(pod: Pod, wanted: RedirectSpec | None = None) -> None:
    pod.run(lambda: ensure(wanted or spec()))


def address(pod: Pod, version: int) -> IPAddress:
    return pod.addresses[0 if version == 4 else 1]


def packets(pod: Pod, rule: str) -> int:
    """The sum over all rules that `rule` is a part of."""
    return sum(count for text, count in counters(pod).items() if rule in text)


async def test_outbound_goes_to_ztunnel(pod: Pod, other: Pod, version: int) -> None:
    """What an app dials ends at port 15001, which can tell what was dialled."""
    redirect(pod)
    target = address(other, version)
    async with answering(pod, version, 15001) as ztunnel, echo_app(other, target, APP) as app:
        assert (await ask(pod, target, APP))[0] == "ztunnel:15001"
    assert ztunnel.destinations == [(target, APP)]
    assert app.peers == []
    assert packets(pod, "redirect to :15001") == 1


@pytest.mark.parametrize("mark", [MARK, 0x7000 | MARK], ids=["plain", "with bits of others"])
async def test_ztunnels_own_traffic_goes_direct(
    pod: Pod, other: Pod, version: int, mark: int
) -> None:
    """What carries ztunnel's mark is not redirected, whatever else is in the mark."""
    redirect(pod)
    target = address(other, version)
    async with answering(pod, version, 15001) as ztunnel, echo_app(other, target, APP):
        name, source, _ = await ask(pod, target, APP, mark=mark)
    assert (name, ip_address(source)) == ("app", address(pod, version))
    assert ztunnel.destinations == []


async def test_a_mark_that_only_resembles_is_not_ztunnels(
    pod: Pod, other: Pod, version: int
) -> None:
    """All twelve bits of the mark count."""
    redirect(pod)
    target = address(other, version)
    async with answering(pod, version, 15001), echo_app(other, target, APP):
        assert (await ask(pod, target, APP, mark=0x139))[0] == "ztunnel:15001"


async def test_inbound_goes_to_ztunnel(pod: Pod, other: Pod, version: int) -> None:
    """What is sent to the app in plain text ends at port 15006."""
    redirect(pod)
    target = address(pod, version)
    async with answering(pod, version, 15006) as ztunnel, echo_app(pod, target, APP) as app:
        name, source, _ = await ask(other, target, APP)
    assert (name, ip_address(source)) == ("ztunnel:15006", address(other, version))
    assert ztunnel.destinations == [(target, APP)]
    assert app.peers == []
    assert packets(pod, "redirect to :15006") == 1


async def test_hbone_is_not_redirected(pod: Pod, other: Pod, version: int) -> None:
    """Port 15008 is ztunnel's own, dialled directly."""
    redirect(pod)
    target = address(pod, version)
    async with answering(pod, version, 15006), echo_app(pod, target, 15008, name="hbone"):
        assert (await ask(other, target, 15008))[0] == "hbone"


async def test_replies_find_ztunnel(pod: Pod, other: Pod, version: int) -> None:
    """The app sees the client's own address, and its reply comes back through ztunnel."""
    redirect(pod)
    target = address(pod, version)
    async with passing_through(pod, version, 15006) as ztunnel, echo_app(pod, target, APP) as app:
        name, source, _ = await ask(other, target, APP)
    assert (name, ip_address(source)) == ("app", address(other, version))
    assert [ip_address(host) for host, _ in app.peers] == [address(other, version)]
    assert ztunnel.destinations == [(target, APP)]
    assert packets(pod, "mangle istio-prerouting: meta mark") > 0
    assert packets(pod, "mangle istio-output: ct mark") > 0


async def test_an_app_calls_itself(pod: Pod, version: int) -> None:
    """A call of the pod's own address goes direct: neither outbound nor inbound."""
    redirect(pod)
    target = address(pod, version)
    async with (
        answering(pod, version, 15001),
        answering(pod, version, 15006),
        echo_app(pod, target, APP),
    ):
        assert (await ask(pod, target, APP))[0] == "app"
    assert packets(pod, 'nat istio-output: oifname "lo"') == 1


async def test_loopback_is_untouched(pod: Pod, version: int) -> None:
    """Containers of one pod talk over loopback as before."""
    redirect(pod)
    target = ip_address("127.0.0.1" if version == 4 else "::1")
    async with (
        answering(pod, version, 15001),
        answering(pod, version, 15006),
        echo_app(pod, target, APP),
    ):
        assert (await ask(pod, target, APP))[0] == "app"


def add_probe_source(pod: Pod, other: Pod) -> None:
    """Make `other` the node, as far as the probes' address goes."""
    other.shell(
        f"ip addr add {PROBE_V4}/32 dev eth0",
        f"ip addr add {PROBE_V6}/128 dev eth0 nodad",
    )
    pod.shell(f"ip route add {PROBE_V4} via {other.v4}", f"ip route add {PROBE_V6} via {other.v6}")


async def test_probes_pass(pod: Pod, other: Pod, version: int) -> None:
    """A kubelet's probe reaches the app itself, which sees the probes' address."""
    redirect(pod)
    add_probe_source(pod, other)
    probe = PROBE_V4 if version == 4 else PROBE_V6
    target = address(pod, version)
    async with answering(pod, version, 15006), echo_app(pod, target, APP):
        name, source, _ = await ask(other, target, APP, source=probe)
    assert (name, ip_address(source)) == ("app", probe)


async def test_calls_of_the_probe_address_pass(pod: Pod, other: Pod, version: int) -> None:
    """What the pod sends to the probes' address is not ztunnel's."""
    redirect(pod)
    add_probe_source(pod, other)
    probe = PROBE_V4 if version == 4 else PROBE_V6
    async with answering(pod, version, 15001), echo_app(other, probe, APP, name="node"):
        assert (await ask(pod, probe, APP))[0] == "node"


async def test_ingress_mode(pod: Pod, other: Pod, version: int) -> None:
    """With inbound capture bypassed, inbound goes to the app and outbound to ztunnel."""
    redirect(pod, spec(bypass_inbound=True))
    target = address(pod, version)
    async with (
        answering(pod, version, 15001),
        answering(pod, version, 15006),
        echo_app(pod, target, APP),
    ):
        assert (await ask(other, target, APP))[0] == "app"
        assert (await ask(pod, address(other, version), APP))[0] == "ztunnel:15001"


async def test_a_rerouted_interface(pod: Pod, other: Pod, version: int) -> None:
    """What a VM in the pod sends is outbound traffic, though it arrives on an interface."""
    redirect(pod, spec(reroute_interfaces=("absent0", "vm0")))
    pod.shell(
        f"ip link add vm0 type veth peer name vm1 netns {other.path}",
    )
    other.shell(
        "ip link set vm1 up",
        "ip addr add 192.0.2.2/24 dev vm1",
        "ip addr add 2001:db8::2/64 dev vm1 nodad",
        "ip route add 203.0.113.0/24 via 192.0.2.1",
    )
    pod.shell(
        "ip link set vm0 up",
        "ip addr add 192.0.2.1/24 dev vm0",
        "ip addr add 2001:db8::1/64 dev vm0 nodad",
    )
    other.shell("ip route add 2001:db8:f::/64 via 2001:db8::1")
    target = ip_address("203.0.113.7" if version == 4 else "2001:db8:f::7")
    async with answering(pod, version, 15001) as ztunnel, answering(pod, version, 15006):
        assert (await ask(other, target, APP))[0] == "ztunnel:15001"
        assert ztunnel.destinations == [(target, APP)]
        assert (await ask(other, address(pod, version), APP))[0] == "ztunnel:15006"


async def test_loopback_without_ipv6(lab: Lab, other: Pod) -> None:
    """Where the pod has no IPv6, its IPv4 is redirected and nothing is missing."""
    pod = lab.add_pod("v4only", ipv6=False)
    redirect(pod)
    assert pod.run(lambda: inspect(spec())) == ()
    assert "lookup 100" not in pod.shell("ip -6 rule")
    async with passing_through(pod, 4, 15006), echo_app(pod, pod.v4, APP):
        name, source, _ = await ask(other, pod.v4, APP)
    assert (name, source) == ("app", str(other.v4))


async def test_ipv6_switched_off(pod: Pod, other: Pod) -> None:
    """An agent that leaves IPv6 alone redirects IPv4 and nothing else."""
    redirect(pod, spec(ipv6=False, dns_capture=True, reroute_interfaces=("eth0",)))
    async with answering(pod, 4, 15001), answering(pod, 6, 15001), answering(pod, 6, 15006):
        assert (await ask(pod, other.v4, APP))[0] == "ztunnel:15001"
        for app_pod, client in ((other, pod), (pod, other)):
            target = address(app_pod, 6)
            async with echo_app(app_pod, target, APP):
                assert (await ask(client, target, APP))[0] == "app"
    assert "lookup 100" not in pod.shell("ip -6 rule")


async def test_nobody_listens(pod: Pod, other: Pod, version: int) -> None:
    """Without a ztunnel the pod's traffic fails: it does not go out another way."""
    redirect(pod)
    target = address(other, version)
    async with echo_app(other, target, APP) as app:
        with pytest.raises(ConnectionRefusedError):
            await ask(pod, target, APP)
    assert app.peers == []


async def test_removed_while_connected(pod: Pod, other: Pod, version: int) -> None:
    """L28: a connection through ztunnel is cut at once, not left hanging; the next goes direct.

    The last NAT chain takes the translation of what is open with it.
    """
    redirect(pod)
    target = address(other, version)
    async with answering(pod, version, 15001), echo_app(other, target, APP):
        async with conversation(pod, target, APP) as before:
            assert before.name == "ztunnel:15001"
            assert pod.run(remove)
            with pytest.raises(ConnectionResetError):
                await before.echo("still here")
        assert (await ask(pod, target, APP))[0] == "app"
