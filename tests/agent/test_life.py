"""The life of the agent and of its pods, with the real kernel and a strict ztunnel."""

import asyncio
import contextlib
import json
import os
import signal
import time
from dataclasses import replace

import pytest

from nodeagent.mesh.pod import Pod as MeshPod
from nodeagent.mesh.pod import PodUID
from nodeagent.netns.netns import NetnsId
from nodeagent.redirect.defaults import RedirectDefaults
from nodeagent.redirect.in_pod import inspect
from nodeagent.redirect.rules import RedirectSpec
from tests.agent.processes import Node, Stub
from tests.agent.ztunnels import ready, reconnected
from tests.eventually import eventually
from tests.lab.lab import Lab
from tests.lab.pod import Pod
from tests.zds.model import ModelZtunnel, Mood


def ruleset(pod: Pod) -> str:
    """All that stands in the pod, to the byte; its handles tell a rewrite from what was left."""
    return pod.shell("nft -s -a list ruleset") + pod.shell("ip rule") + pod.shell("ip -6 rule")


def wanted(node: Node) -> RedirectSpec:
    spec, _ = RedirectDefaults.from_settings(node.settings).of(
        MeshPod(uid=PodUID("1"), name="", namespace="")
    )
    return spec


async def test_pod_from_file_to_ztunnel_and_back(
    lab: Lab, node: Node, ztunnels: list[ModelZtunnel]
) -> None:
    """A manifest's coming, changing and going enrolls, frees and releases the pod."""
    web = lab.add_pod("web")
    node.start()
    ztunnel = await reconnected(node, ztunnels)
    node.write(web)
    await node.until_state(web, "enrolled")
    assert ztunnel.workloads == {"uid-web": NetnsId.of_path(web.path)}
    assert web.run(lambda: inspect(wanted(node))) == ()
    node.write(web, labels={})
    row = await node.until_state(web, "outside")
    assert row["reason"] == "no enablement selector matches"
    assert ztunnel.workloads == {}
    assert web.shell("nft list ruleset") == ""
    node.write(web)
    await node.until_state(web, "enrolled")
    node.delete(web)
    await ztunnel.until(lambda: not ztunnel.workloads)
    assert await node.stop() == 0


async def test_restart_changes_nothing_that_is_right(
    lab: Lab, node: Node, ztunnels: list[ModelZtunnel]
) -> None:
    """L24: after SIGKILL and a new start the rules are byte-identical, handles included."""
    pods = [lab.add_pod(name) for name in "abc"]
    for pod in pods:
        node.write(pod)
    node.start()
    await reconnected(node, ztunnels)
    for pod in pods:
        await node.until_state(pod, "enrolled")
    before = [ruleset(pod) for pod in pods]
    await node.kill()
    node.start()
    again = await reconnected(node, ztunnels)
    assert sorted(again.workloads) == ["uid-a", "uid-b", "uid-c"]
    for pod in pods:
        await node.until_state(pod, "enrolled")
    assert [ruleset(pod) for pod in pods] == before


@pytest.mark.parametrize("goal", ["enrolled", "outside"])
async def test_killed_between_any_two_steps(
    lab: Lab, node: Node, ztunnels: list[ModelZtunnel], goal: str
) -> None:
    """Wherever SIGKILL cuts an enrollment or a removal, the next start ends in the right state."""
    kills = 0
    for step in range(1, 40):
        web = lab.add_pod("web")
        node.write(web)
        if goal == "outside":
            node.start()
            await reconnected(node, ztunnels)
            await node.until_state(web, "enrolled")
            await node.kill()
            node.write(web, labels={})
        node.start(die_after=step)
        first = asyncio.create_task(reconnected(node, ztunnels))
        died = await died_before(node, web, goal)
        first.cancel()
        kills += died
        if died:
            standing = ruleset(web)
            right = web.run(lambda: inspect(wanted(node))) == ()
            node.start()
            ztunnel = await reconnected(node, ztunnels)
            await node.until_state(web, goal)
            if goal == "enrolled":
                assert web.run(lambda: inspect(wanted(node))) == (), step
                assert ztunnel.workloads == {"uid-web": NetnsId.of_path(web.path)}
                assert not right or ruleset(web) == standing, "what was right was touched"
            else:
                assert web.shell("nft list ruleset") == "", step
                assert "lookup 100" not in web.shell("ip rule") + web.shell("ip -6 rule")
                assert ztunnel.workloads == {}
        await node.kill()
        node.delete(web)
        lab.delete(web)
        if not died:
            break
    assert kills >= (10 if goal == "enrolled" else 6), "the steps are not counted any more"


async def died_before(node: Node, pod: Pod, goal: str) -> bool:
    """Whether the agent died on its way; if not, it has reached its goal."""
    outcome: list[bool] = []

    def look() -> bool:
        if not node.process.is_alive():
            outcome.append(True)
        elif (row := node.row(pod)) is not None and row["state"] in {goal, "unserved"}:
            outcome.append(False)
        return bool(outcome)

    await eventually(look)
    if outcome[0]:
        await node.ended()
    return outcome[0]


async def test_lost_rules_come_back(lab: Lab, node: Node, ztunnels: list[ModelZtunnel]) -> None:
    """L1: deleted rules, policy rules and routes are heard of and mended, long before a sweep."""
    web = lab.add_pod("web")
    node.write(web)
    node.start()
    await reconnected(node, ztunnels)
    await node.until_state(web, "enrolled")
    damages = (
        "nft flush chain inet istio-ambient-nat istio-output",
        "nft flush ruleset",
        "ip rule del pref 32764",
        "ip -6 route flush table 100",
    )
    for count, damage in enumerate(damages, start=1):
        web.shell(damage)
        await node.until(web, lambda row, count=count: row["repairs"] >= count)  # type: ignore[misc]
        assert web.run(lambda: inspect(wanted(node))) == (), damage
    assert "redirection repaired" in node.log.read_text()


async def test_older_layout_is_replaced(lab: Lab, node: Node, ztunnels: list[ModelZtunnel]) -> None:
    """L23: rules of another layout version are seen at the start and replaced."""
    web = lab.add_pod("web")
    older = 'table inet istio-ambient-nat { comment "nodeagent layout 0"; chain output { }; }'
    web.shell("nft -f -", stdin=older)
    node.write(web)
    node.start()
    await reconnected(node, ztunnels)
    await node.until_state(web, "enrolled")
    assert "layout 0" not in web.shell("nft list ruleset")
    assert web.run(lambda: inspect(wanted(node))) == ()


async def test_refused_pod_is_pending(lab: Lab, node: Node, ztunnels: list[ModelZtunnel]) -> None:
    """L2: while ztunnel refuses, the pod is redirected and pending; enabled only afterwards."""
    web = lab.add_pod("web")
    node.start()
    ztunnel = await reconnected(node, ztunnels)
    ztunnel.mood = Mood.REFUSING
    node.write(web)
    row = await node.until_state(web, "retrying")
    assert (row["redirection"], row["detail"]) == ("pending", "ztunnel refuses it: cannot bind")
    assert web.run(lambda: inspect(wanted(node))) == ()
    ztunnel.mood = Mood.WILLING
    row = await node.until_state(web, "enrolled")
    assert row["redirection"] == "enabled"


async def test_netns_that_appears_later(lab: Lab, node: Node, ztunnels: list[ModelZtunnel]) -> None:
    """L4: a namespace that is not there yet is a visible, retried state; ztunnel keeps the pod."""
    web = lab.add_pod("web")
    path = web.path + ".later"
    node.write(replace(web, path=path))
    node.start()
    ztunnel = await reconnected(node, ztunnels)
    assert ("keep", "uid-web") in ztunnel.requests
    row = await node.until_state(web, "retrying")
    assert row["detail"] == f"cannot open {path}: No such file or directory"
    os.symlink(web.path, path)
    await node.until_state(web, "enrolled")
    os.unlink(path)


async def test_pod_whose_first_look_fails_keeps_its_listeners(lab: Lab, node: Node) -> None:
    """L31: whatever the next agent's first look at a pod meets, ztunnel does not drop the pod."""
    web = lab.add_pod("web")
    node.write(web)
    node.start()
    stub = Stub(node)
    await node.until(web, lambda row: row["state"] == "enrolled")
    listening = web.shell("ss -Htln")
    assert ":15001" in listening
    await node.kill()
    web.shell("ip link set lo down")  # and no route for the replies can be had
    node.start()
    await node.until_state(web, "retrying")
    up_to_date = "ztunnel is up to date"
    await eventually(lambda: node.log.read_text().count(up_to_date) == 2)
    assert web.shell("ss -Htln") == listening
    web.shell("ip link set lo up")
    await node.until(web, lambda row: row["state"] == "enrolled")
    await stub.stop()


async def test_one_netns_is_one_pods(lab: Lab, node: Node, ztunnels: list[ModelZtunnel]) -> None:
    """L39: a second pod that is found in it is refused, which the log tells as a security event."""
    web = lab.add_pod("web")
    node.write(web)
    node.start()
    ztunnel = await reconnected(node, ztunnels)
    await node.until_state(web, "enrolled")
    before = ruleset(web)
    poser = replace(web, name="poser")
    node.write(poser)
    await node.until_state(poser, "retrying")
    node.write(poser, labels={})
    await node.until_state(poser, "outside")
    assert ztunnel.workloads == {"uid-web": NetnsId.of_path(web.path)}
    assert ruleset(web) == before
    told = [line for line in node.log.read_text().splitlines() if "security: " in line]
    assert [(json.loads(line)["pod"], json.loads(line)["holder"]) for line in told] == [
        ("shop/poser", "shop/web")
    ]


async def test_sandbox_made_again(lab: Lab, node: Node, ztunnels: list[ModelZtunnel]) -> None:
    """L14: the same UID in a new namespace is enrolled there, and the old one is let go."""
    old, new = lab.add_pod("old"), lab.add_pod("new")
    node.write(old)
    node.start()
    ztunnel = await reconnected(node, ztunnels)
    await node.until_state(old, "enrolled")
    node.write(replace(old, path=new.path, v4=new.v4, v6=new.v6))
    await ztunnel.until(lambda: ztunnel.workloads == {"uid-old": NetnsId.of_path(new.path)})
    await node.until(old, lambda row: row["netns"] == str(NetnsId.of_path(new.path)))
    await eventually(lambda: NetnsId.of_path(old.path).inode not in held_inodes(node))
    assert NetnsId.of_path(new.path).inode in held_inodes(node)


def held_inodes(node: Node) -> set[int]:
    found = set()
    for fd in descriptors(node):
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            found.add(os.stat(f"/proc/{node.process.pid}/fd/{fd}").st_ino)
    return found


def descriptors(node: Node) -> list[str]:
    return os.listdir(f"/proc/{node.process.pid}/fd")


async def test_hundred_pods_at_once(lab: Lab, node: Node, ztunnels: list[ModelZtunnel]) -> None:
    """L5: a hundred pods that come at the same moment, and go, leave no descriptor behind."""
    pods = [lab.add_pod(f"pod{n}") for n in range(100)]
    node.start()
    ztunnel = await reconnected(node, ztunnels)
    before = len(descriptors(node))
    for pod in pods:
        node.write(pod)
    await ztunnel.until(lambda: len(ztunnel.workloads) == 100)
    for pod in pods:
        assert pod.run(lambda: inspect(wanted(node))) == ()
        node.delete(pod)
    await ztunnel.until(lambda: not ztunnel.workloads)
    await eventually(lambda: len(descriptors(node)) == before)


async def test_stops_in_time_and_leaves_redirection(
    lab: Lab, node: Node, ztunnels: list[ModelZtunnel]
) -> None:
    """SIGTERM ends the agent before kubelet kills it, even while ztunnel hangs; the rules stay."""
    web = lab.add_pod("web")
    node.start()
    ztunnel = await reconnected(node, ztunnels)
    ztunnel.mood = Mood.SILENT
    node.write(web)
    await ztunnel.until(lambda: ("add", "uid-web") in ztunnel.requests)
    started = time.monotonic()
    assert await node.stop() == 0
    assert time.monotonic() - started < 10, "terminationGracePeriodSeconds of deploy/base"
    assert web.run(lambda: inspect(wanted(node))) == ()
    assert not os.path.exists(node.zds)
    assert json.loads(node.log.read_text().splitlines()[-1])["event"].startswith("stopped")


async def test_second_signal_is_no_crash(node: Node) -> None:
    """Signals that repeat end the agent once, with status 0."""
    node.start()
    await ready(node)
    node.signal(signal.SIGINT)
    node.signal(signal.SIGTERM)
    assert await node.ended() == 0


async def test_broken_file_leaves_pods_alone(
    lab: Lab, node: Node, ztunnels: list[ModelZtunnel]
) -> None:
    """A manifest that turns wrong is reported; its pod and every other stay as they were."""
    web, other = lab.add_pod("web"), lab.add_pod("other")
    node.write(web)
    node.write(other)
    node.start()
    ztunnel = await reconnected(node, ztunnels)
    await node.until_state(web, "enrolled")
    (node.manifests / "web.json").write_text('{"kind": "Pod", "metadata": {"name": 7}}')
    await eventually(lambda: "metadata.name" in node.log.read_text())
    node.delete(other)
    await ztunnel.until(lambda: list(ztunnel.workloads) == ["uid-web"])
    assert (await node.until_state(web, "enrolled"))["netns"]
