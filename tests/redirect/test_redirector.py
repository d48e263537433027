"""Rules that nobody has changed are not read again; whatever was changed is."""

from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from dataclasses import replace

import pytest
from structlog.testing import capture_logs

from nodeagent.config import load
from nodeagent.mesh.pod import DNS_CAPTURE, PodUID
from nodeagent.mesh.pod import Pod as Workload
from nodeagent.netfilter.errors import RulesError
from nodeagent.netfilter.iptables_programs import Variant
from nodeagent.netfilter.nft_state import Tables
from nodeagent.netns.netns import Netns
from nodeagent.netns.threads import NetnsThreads
from nodeagent.redirect import nft_backend
from nodeagent.redirect import redirector as redirectors
from nodeagent.redirect.backend import Backends
from nodeagent.redirect.defaults import RedirectDefaults
from nodeagent.redirect.redirector import PodRedirector
from tests.lab.pod import Pod
from tests.lab.xtables import marked

WORKLOAD = Workload(uid=PodUID("1"), name="web", namespace="shop")
DEFAULTS = RedirectDefaults.from_settings(load({}, {}))


@pytest.fixture
def threads() -> Iterator[NetnsThreads]:
    with closing(NetnsThreads()) as threads:
        yield threads


@pytest.fixture
async def settled(pod: Pod, threads: NetnsThreads) -> AsyncIterator[tuple[PodRedirector, Netns]]:
    """A redirector that has found all of the pod right."""
    redirector = PodRedirector(threads, DEFAULTS, Backends.choose(None), lambda _: None)
    with Netns.open(pod.path) as netns:
        assert (await redirector.ensure(netns, WORKLOAD)).differed
        assert not (await redirector.ensure(netns, WORKLOAD)).differed
        yield redirector, netns


Settled = tuple[PodRedirector, Netns]


async def test_quiet_rules_are_not_read(settled: Settled, monkeypatch: pytest.MonkeyPatch) -> None:
    """L25: the inspection of every minute costs next to nothing where nothing happens."""
    redirector, netns = settled

    def unreadable() -> Tables:
        raise AssertionError("read")

    monkeypatch.setattr(nft_backend, "read", unreadable)
    assert not (await redirector.ensure(netns, WORKLOAD)).differed


@pytest.mark.parametrize(
    "change",
    [
        "nft flush chain inet istio-ambient-nat output",
        "nft delete table inet istio-ambient-raw",
        "nft add chain inet istio-ambient-nat foreign",
        "iptables-nft-restore --noflush",
        "iptables-legacy-restore --noflush",
        "ip rule del priority 32764",
    ],
)
async def test_whatever_changes_is_seen(pod: Pod, settled: Settled, change: str) -> None:
    """L1, L7: rules, leftovers of another backend and routes, at the very next inspection."""
    redirector, netns = settled
    pod.shell(change, stdin=marked("nat", "ISTIO_OUTPUT"))
    assert (await redirector.ensure(netns, WORKLOAD)).differed
    assert not (await redirector.ensure(netns, WORKLOAD)).differed


async def test_another_spec_is_seen(settled: Settled) -> None:
    """L1: what the pod should have may change though its rules did not."""
    redirector, netns = settled
    other = replace(WORKLOAD, annotations={DNS_CAPTURE: "false"})
    assert (await redirector.ensure(netns, other)).differed
    assert not (await redirector.ensure(netns, other)).differed


async def test_the_next_netns_is_inspected(other: Pod, settled: Settled) -> None:
    """L14: what was right in one netns says nothing of the next one's rules."""
    redirector, _ = settled
    with Netns.open(other.path) as netns:
        assert (await redirector.ensure(netns, WORKLOAD)).differed


def test_legacy_rules_have_no_generation(pod: Pod) -> None:
    """iptables-legacy's rules change without a count: they are always read."""
    backends = Backends.choose(None)
    assert pod.run(backends.fingerprint) is not None
    assert pod.run(Backends.choose(Variant.LEGACY).fingerprint) is None, "with no table yet"
    pod.shell("iptables-legacy -t nat -L")
    assert pod.run(backends.fingerprint) is None


async def test_look_tells_and_writes_nothing(settled: Settled, pod: Pod) -> None:
    """What differs, and who does not listen, by the kernel and not from memory."""
    redirector, netns = settled
    before = pod.shell("nft -s -a list ruleset")
    found = await redirector.look(netns, WORKLOAD)
    assert (found.differed, found.silent) == ((), (15001, 15006, 15008, 15053))
    assert pod.shell("nft -s -a list ruleset") == before
    pod.shell("nft flush ruleset")
    pod.shell("ip rule del pref 32764")
    differed = (await redirector.look(netns, WORKLOAD)).differed
    assert differed == ("policy rule for IPv4 is missing", "rules are missing")
    assert pod.shell("nft list ruleset") == ""


async def test_sockets_that_cannot_be_listed(
    pod: Pod, threads: NetnsThreads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a kernel without tcp_diag pods join the mesh, and leave it, all the same."""

    def refuse(*_: object) -> None:
        raise RulesError("cannot list the sockets: ENOENT")

    monkeypatch.setattr(redirectors, "silent_ports", refuse)
    monkeypatch.setattr(redirectors, "open_connections", refuse)
    redirector = PodRedirector(threads, DEFAULTS, Backends.choose(None), lambda _: None)
    with Netns.open(pod.path) as netns, capture_logs() as log:
        for _ in range(2):
            assert (await redirector.ensure(netns, WORKLOAD)).silent == ()
        assert await redirector.release(netns, WORKLOAD) == 1
        assert await redirector.remove(netns, WORKLOAD)
    assert [line["reason"] for line in log if line["log_level"] == "warning"] == [
        "cannot list the sockets: ENOENT"
    ]
