"""How a node ends: with its pods as they are, or taken out of the mesh in order."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.agent.test_probes import PROBE
from tests.cluster.control_plane import ControlPlane
from tests.cluster.manifests import DEPLOY, apply, build
from tests.eventually import PATIENCE, eventually
from tests.node.node import OUTSIDE, Node, host_rules
from tests.node.pod import OUTBOUND, Pod
from tests.node.traffic import serving, talking, through
from tests.tools.demo.node import PORT
from tests.tools.demo.traffic import Stream

KINDS = {"ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding", "DaemonSet"}


@pytest.fixture(autouse=True)
def _deployed_again(deployed: ControlPlane) -> Iterator[None]:
    """Puts back what a test deletes."""
    yield
    apply(deployed.admin, build(DEPLOY / "base"))


async def delete(node: Node, *kinds: str) -> None:
    """Delete these of `deploy/base`, and wait until the agent has heard of what was before."""
    for document in build(DEPLOY / "base"):
        if document["kind"] in kinds:
            node.admin.delete(node.admin.path_of(document))
    await node.until_heard()


async def command(node: Node, *options: str) -> tuple[int, str]:
    """Run ``nodeagent uninstall``; its exit status, and what it wrote."""
    names = [name for name in node.agent.flags if name != "readiness_address"]
    flags = [f"--{name.replace('_', '-')}={node.agent.flags[name]}" for name in names]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "nodeagent",
        "uninstall",
        *options,
        *flags,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=os.environ,
    )
    output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode()


async def answers(pod: Pod) -> str:
    """Dial the pod's app from the node; return the address that it saw.

    Over IPv4: the chain's bridge is not always there for IPv6. The lab's is, in tests/redirect.
    """
    async with asyncio.timeout(PATIENCE):
        reader, writer = await asyncio.open_connection(str(pod.inside.v4), PORT)
        seen = (await reader.readline()).decode().split()[1]
        writer.close()
        await writer.wait_closed()
    return seen


async def probed(pod: Pod) -> str:
    """`answers`, with an app that listens for as long as it takes."""
    async with serving(pod):
        return await answers(pod)


@contextlib.asynccontextmanager
async def probing(pod: Pod) -> AsyncIterator[None]:
    """Probe the pod from the node during the block: each time it has to answer."""

    async def probe(over: asyncio.Event) -> None:
        while not over.is_set():
            await answers(pod)

    async with asyncio.TaskGroup() as group:
        over = asyncio.Event()
        group.create_task(probe(over))
        try:
            yield
        finally:
            over.set()


async def run(node: Node, name: str) -> Pod:
    """A pod that is in the mesh, and can answer what comes from the host probe address."""
    pod = await node.run(name)
    pod.inside.shell("ip route add default via 10.77.0.1")
    await node.until_annotated(pod, "enabled")
    return pod


async def is_out(pod: Pod, server: Pod) -> None:
    """Check that the pod works in plain text, and that nothing of ours is left in it."""
    assert not pod.rules()
    assert not await through(pod, server)


@pytest.mark.parametrize("deleted", [{"DaemonSet"}, KINDS], ids=["DaemonSet", "all"])
async def test_pods_stay_as_they_are(node: Node, deleted: set[str]) -> None:
    """L18: the agent goes, earlier sandboxes can still end, and probes of mesh pods are answered.

    The permissions may go before it, as `kubectl delete -k` has it.
    """
    before = {path: path.read_bytes() for path in node.containerd.net_dir.iterdir()}
    node.register()
    stub = await node.start()
    web, server = await run(node, "web"), await node.run("server", labels=OUTSIDE)
    await delete(node, *deleted)
    assert await node.agent.stop() == 0
    assert {path: path.read_bytes() for path in node.containerd.net_dir.iterdir()} == before
    assert await through(web, server), "it is labeled into the mesh still"
    assert node.agent.said("the host's rules for health probes stay")
    assert await probed(web) == PROBE[0]
    await node.stop_ztunnel(stub)
    assert await probed(web) == PROBE[0], "ztunnel is in the way"
    assert (node.containerd.bin_dir / "nodeagent").exists(), "a sandbox needs it still"
    await node.end(web)
    assert web.sandbox not in await node.containerd.sandboxes()
    late = await node.sandbox("late", node.make("late"))
    assert not await through(late, server)
    status, told = await command(node)
    assert (status, host_rules()) == (0, "")
    assert "table inet istio-ambient-nat is removed" in told


async def test_nothing_is_left_without_pods(node: Node) -> None:
    """On a node without pods of the mesh all of it goes at once."""
    node.register()
    await node.start()
    web = await run(node, "web")
    await node.end(web)
    await eventually(lambda: node.row(web.uid) is None)
    await delete(node, "DaemonSet")
    assert await node.agent.stop() == 0
    assert host_rules() == ""
    assert not (node.containerd.bin_dir / "nodeagent").exists()


async def test_pods_are_released(node: Node) -> None:
    """Not one connection and no probe fails while all pods leave the mesh, and nothing stays."""
    node.agent.flags |= {"release_pods_on_uninstall": "true", "removal_grace": "8"}
    node.register()
    await node.start()
    client, server = await run(node, "client"), await run(node, "server")
    await delete(node, "DaemonSet")
    async with serving(server), serving(client), probing(client), probing(server):
        stream = Stream(client.inside, server.addresses)
        async with stream.flowing():
            await stream.more(5)
            assert await node.agent.stop() == 0
            await stream.more(5)
    assert stream.failures == []
    for pod in (client, server):
        assert node.annotation(pod) is None
        assert pod.listeners(OUTBOUND) == 0
        assert not pod.rules()
    await is_out(client, server)
    assert host_rules() == ""


async def test_a_connection_is_drained(node: Node) -> None:
    """L28: what goes through ztunnel goes on within REMOVAL_GRACE, after peers were told."""
    node.agent.flags |= {"release_pods_on_uninstall": "true", "removal_grace": "8"}
    node.register()
    await node.start()
    client, server = await node.run("client"), await node.run("server", labels=OUTSIDE)
    await node.until_annotated(client, "enabled")
    await delete(node, "DaemonSet")
    async with talking(client, server):
        stopping = asyncio.create_task(node.agent.stop())
        await node.until_state(client.uid, "leaving")
        await node.until_annotated(client, None)
    assert await stopping == 0
    await is_out(client, server)


async def test_pods_that_cannot_be_told_of_are_not_released(node: Node) -> None:
    """Without the permission to annotate, peers would go on sending HBONE: pods stay."""
    node.agent.flags["release_pods_on_uninstall"] = "true"
    node.register(grace=7)
    await node.start()
    web, server = await run(node, "web"), await node.run("server", labels=OUTSIDE)
    await delete(node, *KINDS)
    assert await node.agent.stop() == 0
    assert node.agent.said('"not released"')
    assert node.annotation(web) == "enabled"
    assert await through(web, server)
    assert await probed(web) == PROBE[0]


async def test_a_second_signal_cuts_the_release_short(node: Node) -> None:
    """It would wait for an hour for the permission to annotate; what is left is still removed."""
    node.agent.flags["release_pods_on_uninstall"] = "true"
    node.register(grace=3600)
    await node.start()
    web = await run(node, "web")
    await delete(node, *KINDS)
    node.agent.signal(signal.SIGTERM)
    await eventually(lambda: node.agent.said("taking every pod out"))
    assert await node.agent.stop() == 0
    assert node.agent.said("the release was cut short")
    assert await probed(web) == PROBE[0]


async def test_released_by_command(node: Node) -> None:
    """Where an agent runs the command refuses; where none does, it releases every pod."""
    stub = await node.start()
    client, server = await run(node, "client"), await run(node, "server")
    stood = host_rules()
    status, told = await command(node, "--release-pods")
    assert (status, host_rules()) == (1, stood)
    assert "an agent runs on this node" in told
    await node.agent.stop()
    async with serving(server), serving(client), probing(client), probing(server):
        stream = Stream(client.inside, server.addresses)
        async with stream.flowing():
            await stream.more(5)
            status, told = await command(node, "--release-pods")
            assert status == 0, told
            await stream.more(5)
    assert stream.failures == []
    for pod in (client, server):
        assert node.annotation(pod) is None
    await is_out(client, server)
    assert host_rules() == ""
    await node.stop_ztunnel(stub)


async def test_a_directory_that_does_not_exist_is_named(node: Node) -> None:
    """A mistyped CNI_NET_DIR is not an empty one."""
    node.agent.flags["cni_net_dir"] += "x"
    _, told = await command(node)
    assert f"{node.agent.flags['cni_net_dir']} does not exist (CNI_NET_DIR)" in told
