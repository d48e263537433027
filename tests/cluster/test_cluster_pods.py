"""Pods and namespaces as a real API server tells of them, on good days."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from ipaddress import ip_address
from pathlib import Path

from nodeagent.cluster.cluster_pods import ClusterPods
from nodeagent.cluster.source import NamespaceSeen, PodEvent, PodGone, PodSeen, Synced
from nodeagent.mesh.pod import Namespace, PodUID
from tests.cluster.control_plane import ControlPlane
from tests.cluster.following import connected, following
from tests.cluster.proxy import FaultProxy
from tests.eventually import PATIENCE, eventually


async def test_life_of_a_pod(
    control_plane: ControlPlane, namespace: str, node_name: str, tmp_path: Path
) -> None:
    """A pod is told with its address, its labels, its deletion and its end."""
    admin = control_plane.admin
    async with following(control_plane.kubeconfig(tmp_path / "config"), node_name) as told:
        made = admin.make_pod(namespace, "a", node=node_name, phase="Pending")
        await told.has("a")
        uid = made["metadata"]["uid"]
        admin.set_pod_status(namespace, "a", addresses=["10.1.0.1"])
        await eventually(lambda: told.pods[uid].addresses == (ip_address("10.1.0.1"),))
        path = f"/api/v1/namespaces/{namespace}/pods/a"
        admin.patch(path, {"metadata": {"labels": {"istio.io/dataplane-mode": "ambient"}}})
        await eventually(lambda: "istio.io/dataplane-mode" in told.pods[uid].labels)
        admin.delete(path, grace=30)
        await eventually(lambda: told.pods[uid].deleting)
        admin.delete(path, grace=0)
        await told.has()


async def test_other_nodes(
    control_plane: ControlPlane, namespace: str, node_name: str, tmp_path: Path
) -> None:
    """L25: pods of other nodes are not even sent."""
    admin = control_plane.admin
    admin.make_pod(namespace, "theirs", node="another-node")
    admin.make_pod(namespace, "ours", node=node_name)
    async with following(control_plane.kubeconfig(tmp_path / "config"), node_name) as told:
        admin.make_pod(namespace, "theirs-too", node="another-node")
        admin.make_pod(namespace, "ours-too", node=node_name)
        await told.has("ours", "ours-too")


async def test_namespaces_come_first(
    control_plane: ControlPlane, namespace: str, node_name: str, proxy: FaultProxy, tmp_path: Path
) -> None:
    """At the start every namespace is told before any pod, and ``Synced`` after them all."""
    control_plane.admin.make_pod(namespace, "a", node=node_name)
    config = control_plane.kubeconfig(tmp_path / "config", server=proxy.url)
    proxy.answer(503, match="/api/v1/namespaces", times=6)
    async with following(config, node_name) as told:
        kinds = [type(event) for event in told.events]
    assert kinds.count(PodSeen) == 1
    assert kinds[-2:] == [PodSeen, Synced]
    assert set(kinds[:-2]) == {NamespaceSeen}
    assert namespace in told.namespaces


async def test_labels_of_a_namespace(
    control_plane: ControlPlane, namespace: str, node_name: str, tmp_path: Path
) -> None:
    """A namespace's labels are told as they change, and of anything else in it nothing."""
    admin = control_plane.admin
    path = f"/api/v1/namespaces/{namespace}"
    async with following(control_plane.kubeconfig(tmp_path / "config"), node_name) as told:
        admin.patch(path, {"metadata": {"annotations": {"of": "no interest"}}})
        admin.patch(path, {"metadata": {"labels": {"istio.io/dataplane-mode": "ambient"}}})
        await eventually(lambda: len(told.namespaces[namespace].labels) == 2)
        admin.patch(path, {"metadata": {"labels": {"istio.io/dataplane-mode": None}}})
        await eventually(lambda: len(told.namespaces[namespace].labels) == 1)
    ours = [
        e for e in told.events if isinstance(e, NamespaceSeen) and e.namespace.name == namespace
    ]
    assert len(ours) == 3


async def test_uninteresting_news(
    control_plane: ControlPlane, namespace: str, node_name: str, tmp_path: Path
) -> None:
    """News of a pod that changes nothing for the agent wakes nobody."""
    admin = control_plane.admin
    admin.make_pod(namespace, "a", node=node_name)
    path = f"/api/v1/namespaces/{namespace}/pods/a"
    async with following(control_plane.kubeconfig(tmp_path / "config"), node_name) as told:
        before = len(told.events)
        for number in range(5):
            admin.patch(path, {"metadata": {"annotations": {"a/b": str(number)}}})
        admin.patch(path, {"metadata": {"labels": {"the": "last"}}})
        await eventually(lambda: any(pod.labels for pod in told.pods.values()))
        assert len(told.events) == before + 1


async def test_same_name_twice(
    control_plane: ControlPlane, namespace: str, node_name: str, tmp_path: Path
) -> None:
    """L14: a pod made again under its name is another pod; the old one goes first."""
    admin = control_plane.admin
    old = admin.make_pod(namespace, "a", node=node_name)["metadata"]["uid"]
    async with following(control_plane.kubeconfig(tmp_path / "config"), node_name) as told:
        admin.delete(f"/api/v1/namespaces/{namespace}/pods/a", grace=0)
        new = admin.make_pod(namespace, "a", node=node_name)["metadata"]["uid"]
        await eventually(lambda: new in told.pods)
        assert old not in told.pods
        assert old != new


async def test_asking_directly(
    control_plane: ControlPlane, namespace: str, node_name: str, tmp_path: Path
) -> None:
    """L16: a pod or namespace that is not told of yet can be asked for; "there is none" is None."""
    made = control_plane.admin.make_pod(namespace, "a", node=node_name, addresses=["10.1.0.2"])
    control_plane.admin.make_pod(namespace, "elsewhere", node="another-node")
    async with connected(control_plane.kubeconfig(tmp_path / "config")) as api:
        source = ClusterPods(api, node_name)
        pod = await source.pod(namespace, "a")
        assert pod
        assert pod.uid == made["metadata"]["uid"]
        assert pod.addresses == (ip_address("10.1.0.2"),)
        assert await source.pod(namespace, "elsewhere") is None
        assert await source.pod(namespace, "nobody") is None
        assert await source.pod("..", "..") is None
        labels = {"kubernetes.io/metadata.name": namespace}
        assert await source.namespace(namespace) == Namespace(namespace, labels)
        assert await source.namespace("nowhere") is None
        assert await source.namespace("../nodes") is None


async def test_many_namespaces(
    control_plane: ControlPlane, node_name: str, proxy: FaultProxy, tmp_path: Path
) -> None:
    """Two thousand namespaces arrive once each: in one answer from the server's cache, and in
    pages of five hundred from a server that has to ask its etcd.
    """
    admin = control_plane.admin
    for number in range(2000):
        admin.post("/api/v1/namespaces", {"metadata": {"name": f"many-{number}"}})
    config = control_plane.kubeconfig(tmp_path / "config", server=proxy.url)
    for pages in (0, 1):
        if pages:
            proxy.answer_gone(match="/api/v1/namespaces")
        before = proxy.count("namespaces.*continue=")
        async with following(config, node_name) as told:
            many = [name for name in told.namespaces if name.startswith("many-")]
            assert len(many) == 2000
            assert len(told.events) == len(told.namespaces) + 1
            more = proxy.count("namespaces.*continue=") - before
            assert more == pages * ((len(told.namespaces) - 1) // 500)


async def test_pod_that_was_asked_for_only(
    control_plane: ControlPlane, namespace: str, node_name: str, tmp_path: Path
) -> None:
    """L9: the end of a pod that was only ever asked for is told, though no list had the pod."""
    uid = control_plane.admin.make_pod(namespace, "a", node=node_name)["metadata"]["uid"]
    async with connected(control_plane.kubeconfig(tmp_path / "config")) as api:
        source = ClusterPods(api, node_name)
        assert await source.pod(namespace, "a")
        control_plane.admin.delete(f"/api/v1/namespaces/{namespace}/pods/a", grace=0)
        async with contextlib.aclosing(source.events()) as events:
            told = [event async for event in until_synced(events)]
        assert PodGone(PodUID(uid)) in told


async def until_synced(events: AsyncIterator[PodEvent]) -> AsyncIterator[PodEvent]:
    async with asyncio.timeout(PATIENCE):
        async for event in events:
            yield event
            if event == Synced():
                return
