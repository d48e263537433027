"""L28: what becomes of connections that are open when a pod joins or leaves the mesh."""

import pytest

from nodeagent.redirect.in_pod import ensure, inspect, remove
from nodeagent.redirect.rules import RedirectSpec
from nodeagent.redirect.serving import open_connections, silent_ports
from tests.eventually import eventually
from tests.lab.apps import ask, conversation, echo_app
from tests.lab.pod import Pod
from tests.lab.spec import spec
from tests.lab.standin import answering

APP = 8080


def redirect(pod: Pod, wanted: RedirectSpec) -> None:
    pod.run(lambda: ensure(wanted))
    assert pod.run(lambda: inspect(wanted)) == ()


async def test_join_keeps_what_is_open(pod: Pod, other: Pod, version: int) -> None:
    """With the option, open connections of both directions go on; new ones go to ztunnel."""
    own, far = pod.addresses[version == 6], other.addresses[version == 6]
    async with (
        echo_app(pod, own, APP),
        echo_app(other, far, APP),
        conversation(pod, far, APP) as outbound,
        conversation(other, own, APP) as inbound,
    ):
        redirect(pod, spec(keep_open=True))
        for _ in range(3):
            assert await outbound.echo("out") == "out"
            assert await inbound.echo("in") == "in"
        async with answering(pod, version, 15001), answering(pod, version, 15006):
            assert (await ask(pod, far, APP))[0] == "ztunnel:15001"
            assert (await ask(other, own, APP))[0] == "ztunnel:15006"


async def test_join_without_the_option(pod: Pod, other: Pod, version: int) -> None:
    """By default they are lost: nothing of an enrolled pod stays outside of the mesh."""
    far = other.addresses[version == 6]
    async with echo_app(other, far, APP), conversation(pod, far, APP) as outbound:
        redirect(pod, spec())
        with pytest.raises((ConnectionError, TimeoutError)):
            await outbound.echo("out")


@pytest.mark.parametrize("bypass_inbound", [False, True])
async def test_leave_keeps_what_is_open(
    pod: Pod, other: Pod, version: int, bypass_inbound: bool
) -> None:
    """While it leaves, what goes through ztunnel goes on, and new connections go direct."""
    far = other.addresses[version == 6]
    redirect(pod, spec(bypass_inbound=bypass_inbound))
    async with answering(pod, version, 15001), echo_app(other, far, APP):
        async with conversation(pod, far, APP) as through:
            assert through.name == "ztunnel:15001"
            redirect(pod, spec(bypass_inbound=bypass_inbound, leaving=True))
            assert (await ask(pod, far, APP))[0] == "app"
            assert pod.run(open_connections) == 1
            assert await through.echo("still here") == "still here"
        await eventually(lambda: pod.run(open_connections) == 0)
    assert pod.run(remove)
    assert pod.run(lambda: pod.shell("nft list ruleset")) == ""


async def test_who_listens(pod: Pod, version: int) -> None:
    """L1: ports of ztunnel's on which nobody listens are found, whatever is redirected there."""
    assert pod.run(lambda: silent_ports(spec(dns_capture=True))) == (15001, 15006, 15008, 15053)
    assert pod.run(lambda: silent_ports(spec(bypass_inbound=True))) == (15001, 15008)
    async with answering(pod, version, 15001), answering(pod, version, 15008):
        assert pod.run(lambda: silent_ports(spec(bypass_inbound=True))) == ()
        assert pod.run(lambda: silent_ports(spec())) == (15006,)
