"""Who is in the mesh changes while pods run, and what must not be touched is not."""

import contextlib

import pytest

from tests.agent.processes import AMBIENT
from tests.cluster.client import AnswerError
from tests.eventually import eventually
from tests.node.node import MODE, OUTSIDE, Node
from tests.node.pod import OUTBOUND, Pod
from tests.node.traffic import through, undisturbed

MANIFEST_HASH = "9e0d7a1c3b5f48d2a6e1c0b9f8d7e6a5"
STATIC = {
    "kubernetes.io/config.hash": MANIFEST_HASH,
    "kubernetes.io/config.mirror": MANIFEST_HASH,
}


async def is_in(node: Node, pod: Pod, server: Pod) -> None:
    """Wait until the pod is in the mesh, as the cluster sees it, and check that it is."""
    await node.until_annotated(pod, "enabled")
    assert await through(pod, server)


async def is_out(node: Node, pod: Pod, server: Pod) -> None:
    """Likewise for out of it."""
    await node.until_annotated(pod, None)
    assert not pod.rules()
    assert not await through(pod, server)
    await eventually(lambda: pod.listeners(OUTBOUND) == 0)


@pytest.mark.parametrize("plugin", [True, False])
async def test_pod_is_labeled(node: Node, *, plugin: bool) -> None:
    """A running pod joins and leaves by its own label, without a restart."""
    if not plugin:
        node.without_plugin()
    await node.start()
    server = await node.run("server", labels=OUTSIDE)
    pod = await node.run("web", labels=OUTSIDE)
    await is_out(node, pod, server)
    node.label(pod, AMBIENT)
    await is_in(node, pod, server)
    node.label(pod, {MODE: None})
    await is_out(node, pod, server)


async def test_namespace_is_labeled(node: Node) -> None:
    """Its running pods join and leave by the namespace's label, but for those that say no."""
    await node.start()
    server, other = [await node.run(name, labels={MODE: "none"}) for name in ("server", "other")]
    pods = [await node.run(name, labels=OUTSIDE) for name in ("one", "two")]
    node.label_shop(AMBIENT)
    for pod in pods:
        await is_in(node, pod, server)
    await is_out(node, other, server)
    node.label(pods[0], {MODE: "none"})
    await is_out(node, pods[0], server)
    assert await through(pods[1], server)
    node.label_shop({MODE: None})
    await is_out(node, pods[1], server)


@pytest.mark.parametrize("plugin", [True, False])
async def test_namespace_is_not_known_yet(node: Node, *, plugin: bool) -> None:
    """L16: unknown is not "no": the plugin asks for the namespace, the watch waits for it."""
    if not plugin:
        node.without_plugin()
    await node.start()
    server = await node.run("server", labels=OUTSIDE)
    node.proxy.answer(500, match=r"/namespaces\?", times=1000)
    node.proxy.cut()
    node.admin.make_namespace(late := f"{node.shop}-late", AMBIENT)
    pod = await node.run("web", namespace=late, labels=OUTSIDE)
    if not plugin:
        assert "has not been seen yet" in (await node.until_state(pod.uid, "waiting"))["detail"]
        assert node.annotation(pod) is None
        node.proxy.obey()
    await is_in(node, pod, server)


@pytest.mark.parametrize(
    ("elsewhere", "annotations", "reason"),
    [
        ("kube-system", {}, "namespace kube-system is excluded"),
        ("", {"sidecar.istio.io/status": "{}"}, "has a sidecar"),
    ],
)
async def test_never_touched(
    node: Node, elsewhere: str, annotations: dict[str, str], reason: str
) -> None:
    """Excluded namespaces and sidecars: labeled or not, they are as they were."""
    await node.start()
    if elsewhere:
        with contextlib.suppress(AnswerError):  # made by an earlier test
            node.admin.make_account(elsewhere, "default")
    server = await node.run("server", labels=OUTSIDE)
    pod = await node.run(f"web-{node.name}", namespace=elsewhere, annotations=annotations)
    assert reason in (await node.until_state(pod.uid, "outside"))["detail"]
    await is_out(node, pod, server)
    assert node.proxy.count("PATCH") == 0
    await node.end(pod)


async def test_host_network(node: Node) -> None:
    """A pod in the host's network namespace is labeled, and the host's traffic stays as it is."""
    await node.start()
    uid = node.make("web", spec={"hostNetwork": True})
    await node.containerd.run_sandbox("web", node.shop, uid, host_network=True)
    node.admin.set_pod_status(node.shop, "web", addresses=["127.0.0.1"])
    await node.until_heard()
    row = await node.until_state(uid, "outside")
    assert row["detail"] == "uses the host's network"
    assert row["netns"] is None
    assert node.proxy.count("PATCH") == 0


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
async def test_job_ends(node: Node, phase: str) -> None:
    """L13: a finished Job's pod leaves ztunnel and the mesh though its object stays."""
    await node.start()
    server = await node.run("server", labels=OUTSIDE)
    job = await node.run("job")
    await is_in(node, job, server)
    node.say(job, phase=phase)
    await is_out(node, job, server)
    await node.until_let_go(job.uid)
    await node.end(job)
    await eventually(lambda: node.row(job.uid) is None)


async def test_long_grace(node: Node) -> None:
    """A pod that is being deleted stays enrolled until its containers have ended."""
    await node.start()
    server = await node.run("server", labels=OUTSIDE)
    pod = await node.run("web")
    async with undisturbed(node, pod, server) as stream:
        node.delete(pod, grace=300)
        await node.until_heard()
        await stream.more(5)
        assert (await node.until_state(pod.uid, "enrolled"))["repairs"] == 0
        assert node.annotation(pod) == "enabled"
    await node.end(pod)
    await eventually(lambda: node.row(pod.uid) is None)


@pytest.mark.parametrize("plugin", [True, False])
async def test_static_pod(node: Node, *, plugin: bool) -> None:
    """The runtime knows a static pod by its manifest's hash, the API by the mirror's UID."""
    if not plugin:
        node.without_plugin()
    await node.start()
    server = await node.run("server", labels=OUTSIDE)
    pod = await node.run("static", annotations=STATIC, known_as=MANIFEST_HASH)
    await is_in(node, pod, server)
    await node.end(pod)
    await eventually(lambda: node.row(pod.uid) is None)
