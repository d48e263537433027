"""How a node begins: the chain, the first pods, the taint, and a stop that is no end."""

import asyncio
from collections.abc import Iterator

import pytest
import yaml

from tests.cluster.control_plane import ControlPlane
from tests.cluster.manifests import DEPLOY, NAMESPACE, apply
from tests.eventually import eventually
from tests.node.node import MODE, OUTSIDE, WAITS, Node, host_rules
from tests.node.traffic import through, undisturbed

TAINT = {"key": "cni.istio.io/not-ready", "effect": "NoSchedule"}
OTHER = {"key": "gpu", "effect": "NoSchedule"}


@pytest.fixture
def may_untaint(deployed: ControlPlane) -> Iterator[None]:
    """What the option's component grants on top."""
    rbac = (DEPLOY / "components" / "startup-taint" / "rbac.yaml").read_text()
    granted = list(yaml.safe_load_all(rbac))
    apply(deployed.admin, granted)
    yield
    for document in granted:
        deployed.admin.delete(deployed.admin.path_of(document))


async def test_enrolled_before_its_address_is_known(node: Node) -> None:
    """A pod's sandbox is in the mesh when it is made: its address comes from the plugin."""
    await node.start()
    server = await node.run("server", labels=OUTSIDE)
    pod = await node.sandbox("web", node.make("web"))
    row = node.row(pod.uid)
    assert row is not None
    assert (row["state"], row["addresses"]) == ("enrolled", [str(each) for each in pod.addresses])
    assert await through(pod, server)
    await node.until_annotated(pod, "enabled")
    assert not node.admin.get(f"/api/v1/namespaces/{node.shop}/pods/web")["status"].get("podIPs")


async def test_one_patch(node: Node) -> None:
    """L5: a dozen at once cost one patch each and nothing else; later news of a pod nothing."""
    await node.start()
    # One that came before ztunnel would be pending first.
    await node.until_annotated(await node.run("first"), "enabled")
    await node.until_heard()
    node.proxy.requests.clear()
    uids = {name: node.make(name) for name in (f"web-{number}" for number in range(12))}
    await node.until_heard()  # a plugin that is quicker than the watch asks for its pod
    for pod in await asyncio.gather(*(node.sandbox(name, uid) for name, uid in uids.items())):
        node.say(pod)
        await node.until_annotated(pod, "enabled")
    node.admin.patch(
        f"/api/v1/namespaces/{node.shop}/pods/web-0", {"metadata": {"annotations": {"a": "b"}}}
    )
    await node.until_heard()
    pods = f"/api/v1/namespaces/{node.shop}/pods"
    assert sorted(node.proxy.requests) == sorted(f"PATCH {pods}/{name}/status" for name in uids)


async def test_pod_that_slipped_by(node: Node) -> None:
    """L19: what ran in the mesh's namespace before the agent is enrolled, and an event says so."""
    server, early = await node.run("server", labels=OUTSIDE), await node.run("early")
    assert not await through(early, server)
    node.start_ztunnel()
    await node.start_agent()
    await node.until_annotated(early, "enabled")
    assert await through(early, server)
    await eventually(lambda: node.events("EnrolledLate") == ["early"])
    late = await node.run("late")
    await node.until_annotated(late, "enabled")
    await node.agent.stop()
    await node.start_agent()
    await node.until_heard()
    assert node.events("EnrolledLate") == ["early"]


async def test_fresh_node_and_reboot(node: Node) -> None:
    """L15, L16: nothing waits for itself; without the API mesh pods wait, and nobody else."""
    own = node.register()
    own_name = node.agent.flags["pod_name"]
    # A fresh node: the agent's own pod is the first, and there is no plugin yet.
    first = await node.sandbox(own_name, own, namespace=NAMESPACE)
    await node.start()
    web = await node.run("web")
    server = await node.run("server", labels=OUTSIDE)
    assert await through(web, server)
    # A reboot without the API: the chain stands, and the agent's pod needs it.
    await node.reboot()
    await node.containerd.restart()
    await node.proxy.down()
    assert node.chain()[-1] == "nodeagent"
    await node.sandbox(own_name, first.uid, namespace=NAMESPACE)
    await node.sandbox("dns", "uid-dns", namespace="kube-system")
    assert WAITS in await node.refused("web", web.uid)
    node.agent.start()
    node.start_ztunnel()
    await eventually(lambda: node.agent.readyz() == 503)
    waiting = [asyncio.create_task(node.again(pod.name, pod.uid)) for pod in (web, server)]
    await node.sandbox("log", "uid-log", namespace="kube-system")
    assert not any(task.done() for task in waiting)
    await node.proxy.up()
    web, server = await asyncio.gather(*waiting)
    assert await through(web, server)
    await node.agent.until_ready()


@pytest.mark.usefixtures("may_untaint")
async def test_startup_taint(node: Node) -> None:
    """L19: the taint stays until the plugin is in the chain; other taints stay for good."""

    def taints() -> list[str]:
        found = node.admin.get(f"/api/v1/nodes/{node.name}")["spec"]["taints"]
        return [taint["key"] for taint in found]

    early = await node.run("early")
    node.register(TAINT, OTHER)
    node.agent.flags["remove_startup_taint"] = "true"
    primary = next(node.containerd.net_dir.iterdir())
    primary.rename(aside := primary.with_suffix(".aside"))
    node.agent.start()
    await eventually(lambda: node.agent.said("has written its configuration yet"))
    # All that it does when only the plugin is missing comes before the answer to this.
    await eventually(lambda: node.agent.said('"event": "ready"'))
    node.label(early, {MODE: None})
    await node.until_annotated(early, None)
    assert TAINT["key"] in taints()
    aside.rename(primary)
    await eventually(lambda: TAINT["key"] not in taints())
    assert node.chain()[-1] == "nodeagent"
    assert OTHER["key"] in taints()


async def test_node_goes_down(node: Node) -> None:
    """L17: a signal alone never uninstalls, whether or not the API can be asked."""
    node.register()
    await node.start()
    web, server = await node.run("web"), await node.run("server", labels=OUTSIDE)
    stood = host_rules()
    async with undisturbed(node, web, server):
        assert await node.agent.stop() == 0
        assert (node.chain()[-1], host_rules()) == ("nodeagent", stood)
        await node.start_agent()
        await node.proxy.down()
        assert await node.agent.stop() == 0
        assert (node.chain()[-1], host_rules()) == ("nodeagent", stood)
    assert WAITS in await node.refused("late", node.make("late"))
