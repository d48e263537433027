"""L10: a netns is what it says it is, and the pod's, before anything is done in it."""

import os
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest

from nodeagent.mesh.errors import GiveUpError, RetryError
from nodeagent.mesh.pod import NETNS_PATH, Pod, PodUID
from nodeagent.netns.annotated import AnnotatedNetnsFinder
from nodeagent.netns.netns import Netns, NetnsId, NotANetnsError
from nodeagent.netns.threads import NetnsThreads
from nodeagent.netns.verify import Verifier, host_netns_ids
from tests.descriptors import open_descriptors
from tests.lab.lab import Lab
from tests.lab.pod import Pod as LabPod


def a_pod(lab_pod: LabPod, *addresses: IPv4Address | IPv6Address) -> Pod:
    return Pod(
        uid=PodUID("1"),
        name="web",
        namespace="shop",
        annotations={NETNS_PATH: lab_pod.path},
        addresses=addresses,
    )


def finder(threads: NetnsThreads, *hosts: NetnsId) -> AnnotatedNetnsFinder:
    return AnnotatedNetnsFinder(Verifier(threads, hosts))


def test_identity_does_not_depend_on_the_path(lab: Lab) -> None:
    """Two ways to one netns have one identity; another netns has another."""
    one, two = lab.add_pod("one"), lab.add_pod("two")
    link = Path(one.path + ".link")
    link.symlink_to(one.path)
    with (
        Netns.open(one.path) as first,
        Netns.open(str(link)) as again,
        Netns.open(two.path) as other,
    ):
        assert first.id == again.id != other.id
    link.unlink()


def test_what_is_no_netns(tmp_path: Path) -> None:
    """Files, devices, pipes and other namespaces are refused, not waited for, nor leaked."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    before = open_descriptors()
    for path in (str(fifo), "/proc/self/comm", "/dev/null", "/proc/self/ns/uts", str(tmp_path)):
        with pytest.raises(NotANetnsError):
            Netns.open(path)
    with pytest.raises(FileNotFoundError):
        Netns.open(str(tmp_path / "none"))
    assert open_descriptors() == before


def test_closed_netns_is_not_lent() -> None:
    """A descriptor is closed once, and not lent afterwards: its number is another's by then."""
    netns = Netns.current()
    netns.close()
    netns.close()
    with pytest.raises(ValueError, match="closed"):
        assert netns.fd


async def test_either_address_will_do(lab: Lab, threads: NetnsThreads) -> None:
    """The pod's netns is found by its IPv4 or its IPv6 address, among others that it lacks."""
    pod = lab.add_pod("web")
    assert pod.v6
    for address in (pod.v4, pod.v6):
        found = await finder(threads).find(a_pod(pod, IPv4Address("192.0.2.1"), address), None)
        found.close()


async def test_another_pods_netns(lab: Lab, threads: NetnsThreads) -> None:
    """A netns with none of the pod's addresses is refused for now, and let go."""
    pod, other = lab.add_pod("web"), lab.add_pod("other")
    before = open_descriptors()
    with pytest.raises(RetryError, match=f"holds none of the pod's addresses .{other.v4}"):
        await finder(threads).find(a_pod(pod, other.v4), None)
    assert open_descriptors() == before


async def test_address_that_every_netns_has(lab: Lab, threads: NetnsThreads) -> None:
    """A loopback address in a pod's status proves nothing."""
    pod = lab.add_pod("web")
    with pytest.raises(RetryError, match="holds none"):
        await finder(threads).find(a_pod(pod, IPv4Address("127.0.0.1"), IPv6Address("::1")), None)


async def test_the_hosts_netns(lab: Lab, threads: NetnsThreads) -> None:
    """The host's netns is refused for good, even where it holds the pod's address."""
    pod = lab.add_pod("web")
    with Netns.open(pod.path) as netns, pytest.raises(GiveUpError, match="host"):
        await finder(threads, netns.id).find(a_pod(pod, pod.v4), None)
    own = host_netns_ids(None)
    assert NetnsId.of_path("/proc/self/ns/net") in own
    assert NetnsId.of_path(pod.path) in host_netns_ids(pod.path)


async def test_pod_that_names_none(lab: Lab, threads: NetnsThreads) -> None:
    """A missing annotation is named, and a missing file is tried again."""
    pod = a_pod(lab.add_pod("web"))
    with pytest.raises(GiveUpError, match=NETNS_PATH):
        await finder(threads).find(Pod(uid=pod.uid, name="web", namespace="shop"), None)
    lab.delete(lab.pods["web"])
    with pytest.raises(RetryError, match="No such file"):
        await finder(threads).find(pod, None)
