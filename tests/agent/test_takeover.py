"""Whole lives over what Istio's own agent leaves: taken over, changed, left, uninstalled (L42)."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from nodeagent.netfilter.iptables_programs import Variant
from nodeagent.netfilter.rule import Family
from nodeagent.redirect.backend import Backends
from nodeagent.redirect.in_pod import inspect
from tests.agent.processes import Node
from tests.agent.test_backends import BACKENDS
from tests.agent.ztunnels import reconnected
from tests.lab import istio
from tests.lab.ipsets import KINDS, IptablesHost, new_iptables_host
from tests.lab.lab import Lab
from tests.lab.pod import Pod
from tests.lab.spec import spec
from tests.lab.xtables import listing
from tests.zds.model import ModelZtunnel

VARIANTS = {"nftables": None, "nft": Variant.NFT, "legacy": Variant.LEGACY}
ENABLED = {"ambient.istio.io/redirection": "enabled"}
BYPASS = {"ambient.istio.io/bypass-inbound-capture": "true"}
NODE_RULES = "iptables-{} -t nat -A POSTROUTING -s 10.0.0.0/8 -j MASQUERADE"


@pytest.fixture
def host() -> Iterator[IptablesHost]:
    """A host with rules of others."""
    with new_iptables_host() as host:
        host.shell("ipset create theirs hash:ip", *map(NODE_RULES.format, Variant))
        yield host


def rules(of: Pod | IptablesHost) -> dict[str, list[str]]:
    """What stands, without what the kernel keeps of a table or chain that it was made for."""
    if isinstance(of, Pod):
        legacy = [listing(of, Variant.LEGACY, family) for family in Family]
        return {
            "nft": _standing(of.shell("nft -s list ruleset")),
            "legacy": _standing("\n".join(legacy)),
            "routing": [
                re.sub(r"(expires|pref) \S+", "", line)
                for version in (4, 6)
                for what in ("rule", "route show table all")
                for line in of.shell(f"ip -{version} -d {what}").splitlines()
                if "dev eth0" not in line  # the kernel's own small talk
            ],
        }
    return {
        "nft": _standing(
            re.sub(r" # handle \d+|packets \d+ bytes \d+", "", of.nft("list ruleset"))
        ),
        "legacy": _standing(of.iptables(Variant.LEGACY)),
        "ipsets": of.shell("ipset save").splitlines(),
    }


def _standing(text: str) -> list[str]:
    return [line for line in text.splitlines() if re.search(r"-j |jump|counter|istio|ISTIO", line)]


def is_chosen(pod: Pod, backend: str, *, bypass_inbound: bool = False) -> bool:
    backends = Backends.choose(VARIANTS[backend])
    wanted = spec(dns_capture=True, bypass_inbound=bypass_inbound)
    return pod.run(lambda: inspect(wanted, backends)) == ()


def uninstall(node: Node) -> str:
    environment = os.environ | {name.upper(): value for name, value in node.flags.items()}
    return subprocess.run(
        [sys.executable, "-m", "nodeagent", "uninstall"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_the_stand_in_is_what_istio_leaves(lab: Lab) -> None:
    """As was seen on a real node."""
    pod = lab.add_pod("web")
    istio.enroll(pod, None)
    for version in (4, 6):
        policy = pod.shell(f"ip -{version} -d rule").splitlines()
        assert "32764:\tfrom all fwmark 0x111/0xfff lookup 100 proto unspec" in policy
    assert pod.shell("ip route show table 100").strip() == "local default dev lo scope host"
    assert "comment" not in pod.shell("nft list ruleset")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("former", KINDS, ids=str)
async def test_a_whole_life(
    lab: Lab,
    node: Node,
    ztunnels: list[ModelZtunnel],
    host: IptablesHost,
    *,
    former: Variant | None,
    backend: str,
) -> None:
    """L42: whatever Istio's agent has left is taken over, changed and left; nothing remains."""
    stays, leaves, left = (lab.add_pod(name) for name in ("stays", "leaves", "left"))
    pods = {f"uid-{pod.name}": pod for pod in (stays, leaves, left)}
    before = {uid: rules(pod) for uid, pod in pods.items()}
    host_before = rules(host)
    istio.let_probes_through(host, former, pods)
    for pod in pods.values():
        istio.enroll(pod, former)
        node.write(pod, annotations=ENABLED)
    assert rules(host) != host_before
    assert not any(rules(pod) == before[uid] for uid, pod in pods.items())
    # This one's label goes while neither agent is there.
    node.write(left, labels={}, annotations=ENABLED)

    node.flags |= BACKENDS[backend]
    node.flags["host_netns"] = f"/proc/{os.getpid()}/fd/{host.netns.fd}"
    node.start()
    await reconnected(node, ztunnels)
    await node.until_state(left, "outside")
    assert rules(left) == before["uid-left"]
    for pod in (stays, leaves):
        await node.until_state(pod, "enrolled")
        assert is_chosen(pod, backend)

    node.write(leaves, annotations=ENABLED | BYPASS)
    await node.until(leaves, lambda _: is_chosen(leaves, backend, bypass_inbound=True))
    node.write(leaves, labels={}, annotations=ENABLED)
    await node.until_state(leaves, "outside")
    assert rules(leaves) == before["uid-leaves"]

    assert await node.stop() == 0
    assert is_chosen(stays, backend), "an upgrade touches nothing"
    node.write(stays, labels={}, annotations=ENABLED)
    node.start()
    await node.until_state(stays, "outside")
    assert rules(stays) == before["uid-stays"]
    assert await node.stop() == 0
    assert "removed" in uninstall(node)
    assert rules(host) == host_before
