"""The agent comes and goes, is replaced and cut off: nothing that is right changes."""

import asyncio

import pytest

from tests.agent.processes import AMBIENT
from tests.eventually import eventually
from tests.lab.apps import ask
from tests.node.node import MODE, OUTSIDE, Node, host_rules
from tests.node.pod import OUTBOUND
from tests.node.traffic import serving, talking, through, undisturbed
from tests.tools.demo.node import PORT


@pytest.mark.parametrize("how", ["stop", "kill", "upgrade"])
async def test_agent_is_replaced(node: Node, how: str) -> None:
    """L24: through a stop, a crash and an upgrade no connection fails, and nothing is written."""
    await node.start()
    client, server = await node.run("client"), await node.run("server")
    for pod in (client, server):
        await node.until_annotated(pod, "enabled")
    node.proxy.requests.clear()
    stood = [host_rules(), client.rules(), server.rules()]
    async with undisturbed(node, client, server) as stream, talking(server, client):
        if how == "upgrade":
            await node.agent.upgrade()
        else:
            await (node.agent.stop() if how == "stop" else node.agent.kill())
            await stream.more(5)
            await node.start_agent()
        for pod in (client, server):
            row = await node.until_state(pod.uid, "enrolled")
            assert row["repairs"] == 0
    assert node.proxy.count("PATCH|POST") == 0
    assert [host_rules(), client.rules(), server.rules()] == stood


async def test_changes_while_the_agent_is_away(node: Node) -> None:
    """Who joined, left or went meanwhile is in, out or forgotten when the next agent is ready."""
    await node.start()
    server, joiner = [await node.run(name, labels=OUTSIDE) for name in ("server", "joiner")]
    without_pods = host_rules()
    leaver, gone = await node.run("leaver"), await node.run("gone")
    for pod in (leaver, gone):
        await node.until_annotated(pod, "enabled")
    await node.agent.kill()
    node.label(joiner, AMBIENT)
    node.label(leaver, {MODE: None})
    await node.end(gone)
    await node.start_agent()
    await node.until_annotated(leaver, None)
    await node.until_annotated(joiner, "enabled")
    assert await through(joiner, server)
    assert not await through(leaver, server)
    node.label(joiner, {MODE: None})
    await node.until_annotated(joiner, None)
    assert host_rules() == without_pods


async def test_kubelet_restarts(node: Node) -> None:
    """L9: a pod whose addresses the API loses for a moment keeps all that it has."""
    await node.start()
    client, server = await node.run("client"), await node.run("server", labels=OUTSIDE)
    await node.until_annotated(client, "enabled")
    stood = host_rules()
    await node.agent.stop()
    await node.start_agent()  # so that no sandbox of the plugin's says what they are
    await node.until_state(client.uid, "enrolled")
    node.proxy.requests.clear()
    async with undisturbed(node, client, server):
        node.admin.set_pod_status(node.shop, client.name, addresses=[])
        await node.until_heard()
        assert (await node.until_state(client.uid, "enrolled"))["addresses"] == []
        node.say(client)
        await node.until_heard()
        assert (await node.until_state(client.uid, "enrolled"))["repairs"] == 0
    assert host_rules() == stood
    assert node.proxy.count("PATCH") == 0


async def test_ztunnel_stops_and_starts(node: Node) -> None:
    """Without ztunnel pods stay redirected, nothing is annotated anew, and no work is lost."""
    stub = await node.start()
    client, server = await node.run("client"), await node.run("server", labels=OUTSIDE)
    await node.until_annotated(client, "enabled")
    node.proxy.requests.clear()
    await node.stop_ztunnel(stub)
    async with serving(server):
        for address in server.addresses:
            with pytest.raises(ConnectionRefusedError):
                await ask(client.inside, address, PORT)
    await node.agent.stop()
    await node.start_agent()  # which knows no answer of ztunnel's
    await node.until_state(client.uid, "unserved")
    late = node.make("late")
    await node.until_known(late)
    waiting = asyncio.create_task(node.sandbox("late", late))
    await node.until_state(late, "pending")
    assert node.annotation(client) == "enabled"
    assert node.proxy.count(f"PATCH.*{client.name}") == 0
    await node.run("other", labels=OUTSIDE)
    assert not waiting.done()
    node.start_ztunnel()
    assert await through(await waiting, server)
    assert await through(client, server)


async def test_ztunnel_is_rolled(node: Node) -> None:
    """L11, L12: the next ztunnel takes over while the old one drains; no connection fails."""
    old = await node.start()
    client, server = await node.run("client"), await node.run("server", labels=OUTSIDE)
    async with undisturbed(node, client, server):
        node.start_ztunnel()
        await eventually(lambda: client.listeners(OUTBOUND) == 2)
        late = await node.run("late")
        async with undisturbed(node, late, client):
            await node.stop_ztunnel(old)
        assert client.listeners(OUTBOUND) == late.listeners(OUTBOUND) == 1


async def test_api_is_away(node: Node) -> None:
    """What the plugin announces is handled from the cache, and annotated once the API is back."""
    await node.start()
    client, server = await node.run("client"), await node.run("server")
    uid = node.make("late")
    await node.until_known(uid)
    async with undisturbed(node, client, server):
        await node.proxy.down()
        late = await node.sandbox("late", uid)
        assert await through(late, client)
        assert node.annotation(late) is None
        await node.proxy.up()
        await node.until_annotated(late, "enabled")


@pytest.mark.parametrize("how", ["cut", "gone"])
async def test_watch_breaks(node: Node, how: str) -> None:
    """What was missed is as if it had been seen: deleted, relabeled, replaced, made (L13)."""
    await node.start()
    pods = {name: await node.run(name) for name in ("client", "gone", "leaver", "replaced")}
    server = await node.run("server", labels=OUTSIDE)
    async with undisturbed(node, pods["client"], server):
        await node.proxy.down()
        node.forget(pods["gone"])
        node.label(pods["leaver"], {MODE: None})
        node.forget(pods["replaced"])
        replaced, made = node.make("replaced"), node.make("made")
        if how == "gone":
            node.proxy.answer_gone(match=r"/pods\?.*watch=")
        await node.proxy.up()
        for uid in (replaced, made):
            await node.until_known(uid)
        await eventually(lambda: node.row(pods["gone"].uid) is None)
        await eventually(lambda: node.row(pods["replaced"].uid) is None)
        await node.until_state(pods["leaver"].uid, "outside")
        assert not pods["leaver"].rules()
        new = await node.sandbox("replaced", replaced)
        await node.until_state(replaced, "enrolled")
    assert await through(new, server)
    assert not await through(pods["leaver"], server)


async def test_node_reboots(node: Node) -> None:
    """L2, L3: annotations outlive the node, rules do not: everything is enrolled anew."""
    await node.start()
    before = {name: await node.run(name) for name in ("client", "server")}
    for pod in before.values():
        await node.until_annotated(pod, "enabled")
    await node.reboot()
    making = {name: asyncio.create_task(node.again(name, before[name].uid)) for name in before}
    await node.start()
    after = {name: await task for name, task in making.items()}
    assert await through(after["client"], after["server"])
    for pod in after.values():
        node.say(pod)
        await node.until_state(pod.uid, "enrolled")


async def test_node_reboots_without_the_plugin(node: Node) -> None:
    """L41: what the annotation says from before is no proof, and is no status line either."""
    node.without_plugin()
    await node.start()
    before = await node.run("client")
    await node.until_annotated(before, "enabled")
    await node.reboot()
    after = await node.sandbox("client", before.uid)
    node.say(after)
    await node.start_agent()
    await node.until_state(after.uid, "pending")
    assert after.rules()
    assert node.annotation(after) == "enabled"
    node.start_ztunnel()
    await node.until_state(after.uid, "enrolled")
    server = await node.run("server", labels=OUTSIDE)
    assert await through(after, server)


@pytest.mark.parametrize("plugin", [True, False])
async def test_sandbox_is_made_again(node: Node, *, plugin: bool) -> None:
    """L14: under the same UID the new sandbox is enrolled, and the old one is let go."""
    if not plugin:
        node.without_plugin()
    await node.start()
    server = await node.run("server", labels=OUTSIDE)
    first = await node.run("web")
    row = await node.until_state(first.uid, "enrolled")
    await node.containerd.stop_sandbox(first.sandbox)
    second = await node.sandbox("web", first.uid)
    node.say(second)
    # Not by the netns: once the old one has gone, the kernel gives its number to the new one.
    await node.until(
        first.uid, lambda now: now["state"] == "enrolled" and now["addresses"] != row["addresses"]
    )
    await node.containerd.remove_sandbox(first.sandbox)
    assert await through(second, server)
    await node.until_annotated(second, "enabled")


async def test_replaced_under_its_name(node: Node) -> None:
    """L14: a StatefulSet's pod that is made anew is another pod; the old one's end is late."""
    await node.start()
    server = await node.run("server", labels=OUTSIDE)
    old = await node.run("db-0")
    node.forget(old)
    new = await node.run("db-0")
    async with undisturbed(node, new, server):
        await node.containerd.remove_sandbox(old.sandbox)
        await eventually(lambda: node.row(old.uid) is None)
        await node.until_state(new.uid, "enrolled")
    await node.until_annotated(new, "enabled")
