"""Pods that work against their node, and kernels that lack something. Needs: `nft`, `ip`.

Everything is done through `PodRedirector`, as the agent does it; one pod is the victim
of each test, and another shows that nobody else is held up.
"""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import nftables
import pytest
import structlog

from nodeagent.config import Settings
from nodeagent.mesh.errors import RetryError
from nodeagent.mesh.pod import REROUTE_VIRTUAL_INTERFACES, PodUID
from nodeagent.mesh.pod import Pod as MeshPod
from nodeagent.netfilter import iptables_legacy
from nodeagent.netns.netns import Netns
from nodeagent.netns.threads import NetnsThreads
from nodeagent.redirect.backend import Backends
from nodeagent.redirect.defaults import RedirectDefaults
from nodeagent.redirect.nft_backend import read
from nodeagent.redirect.redirector import PodRedirector
from tests.lab import conntrack
from tests.lab.apps import ask, echo_app
from tests.lab.lab import Lab
from tests.lab.pod import Pod
from tests.lab.standin import answering

NAT, RAW = "inet istio-ambient-nat", "inet istio-ambient-raw"
APP = 8080
MANY = 10_000
PLAIN = MeshPod(uid=PodUID("plain"), name="plain", namespace="shop")


@pytest.fixture
def redirector() -> Iterator[PodRedirector]:
    with contextlib.closing(NetnsThreads(2)) as threads:
        yield PodRedirector(
            threads,
            RedirectDefaults.from_settings(Settings()),
            Backends.choose(None),
            lambda _: None,
        )


async def ensure(redirector: PodRedirector, pod: Pod, wanted: MeshPod = PLAIN) -> tuple[str, ...]:
    """What was mended."""
    with Netns.open(pod.path) as namespace:
        return (await redirector.ensure(namespace, wanted)).differed


def rerouting(names: str) -> MeshPod:
    return MeshPod(
        uid=PodUID("vm"),
        name="vm",
        namespace="shop",
        annotations={REROUTE_VIRTUAL_INTERFACES: names},
    )


def add_many(pod: Pod, chain: str) -> None:
    for first in range(0, MANY, 500):  # all in one is too long for a message
        rules = (f"add rule {chain} meta mark {first + n} accept" for n in range(500))
        pod.shell("nft -f -", stdin="\n".join(rules))


@pytest.mark.parametrize("where", ["theirs", "ours"])
async def test_ten_thousand_rules(
    redirector: PodRedirector, pod: Pod, other: Pod, where: str
) -> None:
    """10,000 rules beside ours cost nothing, among ours they go; the next pod does not wait."""
    await ensure(redirector, pod)
    if where == "theirs":
        pod.shell("nft add table inet foreign", "nft add chain inet foreign many")
        add_many(pod, "inet foreign many")
    else:
        add_many(pod, f"{NAT} istio-output")
    finished: list[Pod] = []

    async def timed(one: Pod) -> tuple[str, ...]:
        found = await ensure(redirector, one)
        finished.append(one)
        return found

    found, _ = await asyncio.gather(timed(pod), timed(other))
    assert bool(found) == (where == "ours")
    if where == "ours":
        assert finished == [other, pod]
    assert await ensure(redirector, pod) == await ensure(redirector, other) == ()
    left = pod.shell("nft list ruleset").count("accept")
    assert (left > MANY) == (where == "theirs")


NASTY = (
    'x" accept',
    "eth*",
    "eth+",
    "a;flush ruleset",
    "a}\ndelete table inet istio-ambient-nat",
    "..",
    "../../lo",
    "lo",
    "@set",
    "$var",
    "x" * 16,
    "tap0 tap1",
    "\\",
    "#",
    "é",
    "\0",
)


async def test_names_that_smuggle(redirector: PodRedirector, pod: Pod, other: Pod) -> None:
    """Of a tenant's interface names only the good ones are rerouted; the pod is redirected."""
    await ensure(redirector, pod, rerouting(",".join(("tap0", *NASTY, "br-1.2"))))
    await ensure(redirector, other, rerouting("tap0,@set,br-1.2"))
    assert pod.run(read) == other.run(read)
    listing = pod.shell("nft list ruleset")
    named = [line.split('"')[1] for line in listing.splitlines() if "iifname" in line]
    assert Counter(named) == {"tap0": 3, "@set": 3, "br-1.2": 3}
    async with answering(pod, 4, 15001):
        assert (await ask(pod, other.v4, APP))[0] == "ztunnel:15001"


async def test_thousand_interfaces(redirector: PodRedirector, pod: Pod) -> None:
    """Of 1,000 interfaces 64 are rerouted, and the owner is told once, not at every look."""
    wanted = rerouting(",".join(f"tap{n}" for n in range(1000)))
    with structlog.testing.capture_logs() as logs:
        assert await ensure(redirector, pod, wanted)
        assert await ensure(redirector, pod, wanted) == ()
    (warning,) = logs
    assert "only the first 64 interfaces are used" in warning["reason"]
    assert pod.shell("nft list ruleset").count("iifname") == 3 * 64


async def test_full_conntrack_table(redirector: PodRedirector, pod: Pod, other: Pod) -> None:
    """With no room for a connection, nothing gets past ztunnel, and the rules are kept true."""
    await ensure(redirector, pod)
    await ensure(redirector, other)
    pod.run(conntrack.fill)
    with pytest.raises(PermissionError), pod.socket(kind=conntrack.UDP) as sock:
        sock.sendto(b"dropped", (str(other.v4), APP))
    pod.shell(f"nft flush table {NAT}")
    assert "rules instead of" in "; ".join(await ensure(redirector, pod))
    async with (
        answering(pod, 4, 15001) as ztunnel,
        answering(other, 4, 15001),
        echo_app(other, other.v4, APP) as app,
    ):
        waiting = asyncio.create_task(ask(pod, other.v4, APP))
        assert (await ask(other, pod.v4, APP))[0] == "ztunnel:15001"
        assert ztunnel.destinations == []
        pod.run(conntrack.make_room)
        assert (await waiting)[0] == "ztunnel:15001"
        assert app.peers == []


@pytest.mark.parametrize(
    ("lacking", "reason"),
    [('meta ibrname "x"', "ENOTSUP"), ('counter ct expectation set "x"', "ENOENT")],
)
async def test_kernel_without_an_expression(
    redirector: PodRedirector,
    pod: Pod,
    monkeypatch: pytest.MonkeyPatch,
    lacking: str,
    reason: str,
) -> None:
    """What the kernel cannot do is told with the rule that needs it; the former rules are left."""
    await ensure(redirector, pod, rerouting("former"))
    before = pod.shell("nft -a -s list ruleset")
    with monkeypatch.context() as kernel:
        kernel.setattr(nftables.Nftables, "cmd", without_zones(lacking))
        with pytest.raises(RetryError, match=rf"{reason}: .* at: udp sport 53 .*{lacking}"):
            await ensure(redirector, pod, rerouting(reason))
    assert pod.shell("nft -a -s list ruleset") == before
    assert await ensure(redirector, pod, rerouting(reason))


def without_zones(lacking: str) -> Callable[[Any, str], Any]:
    real = nftables.Nftables.cmd

    def cmd(library: Any, text: str) -> Any:
        return real(library, text.replace("counter ct zone set 1", lacking))

    return cmd


@pytest.mark.parametrize("form", ["", "-j"], ids=["text", "json"])
async def test_older_nft_reads_what_we_wrote(
    redirector: PodRedirector, lab: Lab, pod: Pod, form: str
) -> None:
    """L6: what an nft as old as 1.0.6 lists of our tables it takes back as the same rules."""
    await ensure(redirector, pod, rerouting("tap0"))
    copy = lab.add_pod("copy")
    listing = pod.shell(f"nft {form} list ruleset")
    copy.shell(f"nft {form} -f -", stdin=listing)
    have, want = copy.run(read), pod.run(read)
    if form == "-j":  # it leaves out what is written on a table
        want = {name: replace(table, comment=b"") for name, table in want.items()}
    assert have == want


async def test_thousands_of_tables_and_chains(redirector: PodRedirector, pod: Pod) -> None:
    """L36: what a tenant puts beside our tables makes a look no longer."""
    await ensure(redirector, pod)

    def cost() -> float:
        def look() -> float:
            started = time.thread_time()
            assert read()
            return time.thread_time() - started

        return min(look() for _ in range(5))

    before = pod.run(cost)
    tables = (f"add table inet t{n}" for n in range(500))
    chains = (f"add chain inet t0 c{n}" for n in range(2000))
    pod.shell("nft -f -", stdin="\n".join((*tables, *chains)))
    assert pod.run(cost) < 5 * before


@pytest.mark.usefixtures("xtables_lock")
async def test_a_table_that_is_too_large(
    redirector: PodRedirector, pod: Pod, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A legacy table may have 512 MiB: it is not read, and the pod is redirected all the same."""
    pod.shell("iptables-legacy -t nat -A OUTPUT -j ACCEPT")
    monkeypatch.setattr(iptables_legacy, "LARGEST_TABLE", 100)
    with Netns.open(pod.path) as namespace:
        inspection = await redirector.ensure(namespace, PLAIN)
        assert "EFBIG" in inspection.uncleaned
    assert pod.run(read)
