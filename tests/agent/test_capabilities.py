"""Real agents with exactly what the manifests grant, over pods that make it hard (L35, L43).

Needs: `ip`, `nft`, `iptables`, `unshare`, `nsenter`.
"""

import contextlib
import json
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nodeagent.netfilter.iptables_programs import Variant, restore
from nodeagent.netfilter.rule import Family
from tests.agent.processes import Node
from tests.agent.ztunnels import reconnected
from tests.capabilities import Grant, granted
from tests.lab.lab import Lab
from tests.lab.pod import Pod
from tests.lab.xtables import ISTIO, inside, listing
from tests.zds.model import ModelZtunnel

BACKENDS = {
    "nftables": ((), {}),
    "nft": (("iptables",), {"native_nftables": "false", "force_iptables_binary": "nft"}),
    "legacy": (("iptables",), {"native_nftables": "false", "force_iptables_binary": "legacy"}),
}


NAMES = {"nftables": "nftables", "nft": "iptables-nft", "legacy": "iptables-legacy"}


@contextlib.asynccontextmanager
async def agent(directory: Path, grant: Grant, **settings: str) -> AsyncIterator[Node]:
    node = Node(directory, **settings)
    node.grant = grant
    try:
        yield node
    finally:
        if node.process is not None:
            with contextlib.suppress(ProcessLookupError):  # a failure shows itself
                await node.kill()


@contextlib.contextmanager
def user_namespaced(pod: Pod) -> Iterator[Pod]:
    """A pod with ``hostUsers: false``: its network namespace belongs to a user of its own."""
    with contextlib.ExitStack() as stack:
        sleep = "echo && exec sleep 600"
        owner = stack.enter_context(_process("unshare", "--user", "sh", "-c", sleep))
        for kind in ("uid", "gid"):
            Path(f"/proc/{owner}/{kind}_map").write_text("0 100000 65536")
        enter = ["nsenter", f"--target={owner}", "--user", "--setuid=0", "--setgid=0"]
        script = (
            "ip link set lo up && XTABLES_LOCKFILE=/dev/null iptables-legacy -t nat -S >&2"
            f" && {sleep}"
        )
        inner = stack.enter_context(_process(*enter, "unshare", "--net", "sh", "-c", script))
        subprocess.run(
            ["nsenter", f"--net={pod.path}", "ip", "link", "set", "eth0", "netns", inner],
            check=True,
        )
        made = replace(pod, path=f"/proc/{inner}/ns/net")
        for address, length in ((pod.v4, 24), (pod.v6, 64)):
            made.shell(f"ip address add {address}/{length} dev eth0")
        made.shell("ip link set eth0 up")
        yield made


@contextlib.contextmanager
def _process(*command: str) -> Iterator[str]:
    """The id of a process that has written a line, and lives until the end of the ``with``."""
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline(), f"it failed: {command}"
        try:
            yield str(process.pid)
        finally:
            process.kill()


def lines(node: Node, event: str) -> list[dict[str, Any]]:
    found = map(json.loads, node.log.read_text().splitlines())
    return [line for line in found if line["event"] == event]


def add_legacy_leftovers(pod: Pod) -> None:
    """What an earlier agent on iptables-legacy has left."""
    for family in Family:
        inside(pod, restore, Variant.LEGACY, family, ISTIO[family])


@pytest.mark.parametrize("backend", BACKENDS)
async def test_what_the_manifest_grants_is_enough(
    lab: Lab, tmp_path: Path, ztunnels: list[ModelZtunnel], backend: str
) -> None:
    """L43: legacy tables, legacy leftovers and user namespaces, with the very capabilities."""
    components, settings = BACKENDS[backend]
    docker, former = lab.add_pod("docker"), lab.add_pod("former")
    docker.shell("iptables-legacy -t nat -N DOCKER", "iptables-legacy -t nat -A DOCKER -j RETURN")
    add_legacy_leftovers(former)
    grant = granted(*components)
    with user_namespaced(lab.add_pod("user")) as user:
        async with agent(tmp_path, grant, **settings) as node:
            for pod in (docker, former, user):
                node.write(pod)
            node.start()
            await reconnected(node, ztunnels)
            for pod in (docker, former, user):
                await node.until_state(pod, "enrolled")
            assert lines(node, "leftovers stay in a pod") == []
            node.write(docker, labels={})
            await node.until_state(docker, "outside")
            went = {
                line["pod"]: (line["netns"], line["removed"])
                for line in lines(node, "removed from a pod's network namespace")
            }
    assert went["shop/docker"][0].startswith("net:[")
    assert went["shop/docker"][1][0] == f"rules in {NAMES[backend]}"
    if backend != "legacy":
        assert went["shop/former"][1] == ["rules in iptables-legacy are not wanted"]
    if backend != "legacy":
        assert "ISTIO" not in listing(former, Variant.LEGACY)
    assert "-A DOCKER -j RETURN" in listing(docker, Variant.LEGACY)


UNCLEANED = {"former": ("NET_RAW",), "user": ("DAC_READ_SEARCH", "DAC_OVERRIDE")}
"""Without which capabilities the leftovers of which pod stay."""


# Without NET_RAW the match for the host's sets cannot be written through iptables.
@pytest.mark.parametrize(
    ("backend", "pod_name"), [("nftables", "former"), ("nftables", "user"), ("nft", "user")]
)
async def test_a_leftover_that_cannot_go_stands_before_nothing(
    lab: Lab,
    tmp_path: Path,
    ztunnels: list[ModelZtunnel],
    backend: str,
    pod_name: str,
) -> None:
    """L35: the pod is enrolled all the same; what stays is told once, with the capability."""
    components, settings = BACKENDS[backend]
    missing = UNCLEANED[pod_name]
    former = lab.add_pod("former")
    add_legacy_leftovers(former)
    with user_namespaced(lab.add_pod("user")) as user:
        async with agent(tmp_path, granted(*components).without(*missing), **settings) as node:
            for pod in (former, user):
                node.write(pod)
            node.start()
            await reconnected(node, ztunnels)
            for pod in (former, user):
                await node.until_state(pod, "enrolled")
            for pod in (former, user):  # a second look tells nothing new
                verified = (await node.until_state(pod, "enrolled"))["verified"]
                pod.shell("ip rule del pref 32764")
                await node.until(pod, lambda row, before=verified: row["verified"] > before)  # type: ignore[misc]
            [said] = lines(node, "leftovers stay in a pod")
            uncleaned = {each: (node.row(each) or {})["uncleaned"] for each in (former, user)}
    assert said["pod"] == f"shop/{pod_name}"
    assert {reason for reason in uncleaned.values() if reason} == {said["reason"]}
    assert f"CAP_{missing[0]} is missing" in said["reason"]
    assert "SELinux" not in said["reason"]


async def test_legacy_rules_need_no_list_of_tables(
    lab: Lab, tmp_path: Path, ztunnels: list[ModelZtunnel]
) -> None:
    """L43: a pod with ``hostUsers: false`` joins and leaves without DAC_READ_SEARCH."""
    components, settings = BACKENDS["legacy"]
    grant = granted(*components).without(*UNCLEANED["user"])
    with user_namespaced(lab.add_pod("user")) as user:
        async with agent(tmp_path, grant, **settings) as node:
            node.write(user)
            node.start()
            await reconnected(node, ztunnels)
            await node.until_state(user, "enrolled")
            assert "ISTIO_OUTPUT" in listing(user, Variant.LEGACY)
            user.shell("iptables-legacy -t nat -F ISTIO_OUTPUT", "ip rule del pref 32764")
            await node.until(user, lambda row: row["repairs"] == 1)
            assert "15001" in user.shell("iptables-legacy -t nat -S ISTIO_OUTPUT")
            node.write(user, labels={})
            await node.until_state(user, "outside")
        assert "ISTIO" not in listing(user, Variant.LEGACY)
