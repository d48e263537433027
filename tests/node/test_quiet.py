"""What a healthy node's log says: nothing that nobody has to do something about."""

import json
from collections.abc import Sequence

import pytest

from nodeagent.commands.check.places import check_zds_socket
from tests.agent.processes import AMBIENT
from tests.eventually import eventually
from tests.node.node import MODE, OUTSIDE, Node

ACTIONABLE: frozenset[str] = frozenset()
"""Lines above `info` that an ordinary life has, and that somebody has to do something about."""
_QUIET = ("debug", "info")


def lines(node: Node) -> list[dict[str, str]]:
    with open(node.agent.log) as log:
        return [json.loads(line) for line in log]


def of_the_agent(node: Node) -> list[dict[str, str]]:
    """Without the warning of an event loop that was held up: a busy machine does that, too."""
    return [line for line in lines(node) if not line["event"].startswith("something holds up")]


def shown(found: Sequence[dict[str, str]]) -> str:
    return "\n".join(json.dumps(line) for line in found)


async def test_ordinary_life(node: Node) -> None:
    """Pods come, join, leave and go, ztunnel and the agent are restarted, the watch is cut:
    no line is above `info`.
    """
    stub = await node.start()
    client, server = await node.run("client"), await node.run("server", labels=OUTSIDE)
    await node.until_annotated(client, "enabled")
    node.label(server, AMBIENT)
    await node.until_annotated(server, "enabled")
    node.label(server, {MODE: None})
    await node.until_annotated(server, None)
    node.label_shop(AMBIENT)
    await node.until_annotated(server, "enabled")
    node.label_shop({MODE: None})
    await node.until_annotated(server, None)
    await node.stop_ztunnel(stub)
    node.start_ztunnel()
    await node.until_state(client.uid, "enrolled")
    await node.agent.stop()
    await node.start_agent()
    await node.until_state(client.uid, "enrolled")
    await node.agent.kill()
    await node.start_agent()
    await node.until_state(client.uid, "enrolled")
    node.proxy.cut()
    late = await node.run("late")
    await node.until_annotated(late, "enabled")
    node.delete(late, grace=30)
    for pod in (late, client, server):
        await node.end(pod)
        await node.until_let_go(pod.uid)
    await node.until_heard()
    loud = [line for line in of_the_agent(node) if line["level"] not in _QUIET]
    assert {line["event"] for line in loud} == ACTIONABLE, shown(loud)


async def test_quiet_node(node: Node) -> None:
    """On a node on which nothing happens to its pods the log stays empty at `info`, whoever
    looks at it.
    """
    await node.start()
    pod = await node.run("web")
    await node.until_annotated(pod, "enabled")
    await node.until_heard()
    before = len(of_the_agent(node))
    # Only the binding of the socket is looked at: `nodeagent check` beside a running agent.
    assert check_zds_socket(node.agent.settings).ok
    await eventually(lambda: node.agent.said("ztunnel disconnected"))
    for number in range(5):
        node.admin.patch(pod.path, {"metadata": {"annotations": {"a/b": str(number)}}})
        assert node.agent.readyz() == 200
        assert node.row(pod.uid)
    node.proxy.cut()
    await node.until_heard()
    told = [line for line in of_the_agent(node)[before:] if line["level"] != "debug"]
    assert told == [], shown(told)


@pytest.mark.parametrize("how", ["deleted", "deleted by force", "its sandbox is made again"])
async def test_end_of_a_pod(node: Node, how: str) -> None:
    """No line is above `info`, though the runtime takes `lo` down before the plugin's DEL comes,
    which the drift watch hears of first.
    """
    await node.start()
    for number in range(3):
        pod = await node.run(f"web-{number}")
        await node.until_annotated(pod, "enabled")
        if how == "its sandbox is made again":
            await node.containerd.remove_sandbox(pod.sandbox)
            node.say(await node.sandbox(pod.name, pod.uid))
            await node.until_state(pod.uid, "enrolled")
            continue
        if how == "deleted":
            node.delete(pod, grace=30)
            await node.until_heard()
        await node.containerd.remove_sandbox(pod.sandbox)
        node.forget(pod)
        await eventually(lambda uid=pod.uid: node.row(uid) is None)  # type: ignore[misc]
    loud = [line for line in of_the_agent(node) if line["level"] not in _QUIET]
    assert loud == [], shown(loud)
