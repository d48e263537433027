"""An upgrade told from an uninstall, against a real API server."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest
import structlog.testing

from nodeagent.cluster.api import ApiServer
from nodeagent.cluster.uninstall_detector import UninstallDetector
from tests.cluster.client import Client
from tests.cluster.control_plane import ControlPlane
from tests.cluster.proxy import FaultProxy
from tests.eventually import PATIENCE, eventually

LINUX = {"kubernetes.io/os": "linux"}


@pytest.fixture
async def api(
    control_plane: ControlPlane, proxy: FaultProxy, tmp_path: Path
) -> AsyncIterator[ApiServer]:
    kubeconfig = control_plane.kubeconfig(tmp_path / "kubeconfig", server=proxy.url)
    async with ApiServer.connect(kubeconfig) as api:
        yield api


class Installed:
    """A DaemonSet, its pod and its node; the test plays the DaemonSet controller."""

    def __init__(self, admin: Client, namespace: str, node_name: str) -> None:
        self.admin, self.namespace, self.node_name = admin, namespace, node_name
        self.daemonsets = f"/apis/apps/v1/namespaces/{namespace}/daemonsets"
        self.pod = f"/api/v1/namespaces/{namespace}/pods/agent-x"
        admin.make_node(node_name, labels=LINUX)
        uid = self.make_daemonset("agent")
        admin.make_pod(namespace, "agent-x", node=node_name)
        self.own("agent", uid)

    def make_daemonset(self, name: str, finalizers: tuple[str, ...] = ()) -> str:
        labels = {"app": "agent"}
        template = {
            "metadata": {"labels": labels},
            "spec": {
                "nodeSelector": LINUX,
                "containers": [{"name": "agent", "image": "example.test/none:1"}],
            },
        }
        body = {
            "metadata": {"name": name, "finalizers": finalizers},
            "spec": {"selector": {"matchLabels": labels}, "template": template},
        }
        uid: str = self.admin.post(self.daemonsets, body)["metadata"]["uid"]
        return uid

    def own(self, name: str, uid: str) -> None:
        owner = {"apiVersion": "apps/v1", "kind": "DaemonSet", "name": name, "uid": uid}
        owners = [owner | {"controller": True}]
        self.admin.patch(self.pod, {"metadata": {"ownerReferences": owners}})

    def label_node(self, labels: Mapping[str, str | None]) -> None:
        self.admin.patch(f"/api/v1/nodes/{self.node_name}", {"metadata": {"labels": dict(labels)}})

    def detector(self, api: ApiServer) -> UninstallDetector:
        return UninstallDetector(
            api, pod_namespace=self.namespace, pod_name="agent-x", node_name=self.node_name
        )


@pytest.fixture
def installed(control_plane: ControlPlane, namespace: str, node_name: str) -> Installed:
    return Installed(control_plane.admin, namespace, node_name)


async def test_upgrade(api: ApiServer, installed: Installed) -> None:
    """L17: with its DaemonSet in place, an agent's pod that is deleted makes room for the next."""
    detector = installed.detector(api)
    await detector.learn()
    installed.admin.delete(installed.pod)
    assert not await detector.is_uninstall()


async def test_node_that_is_drained(api: ApiServer, installed: Installed) -> None:
    """L17: a node that is cordoned, tainted and rebooted keeps its agent's work."""
    node = f"/api/v1/nodes/{installed.node_name}"
    taints = [{"key": "node.kubernetes.io/unschedulable", "effect": "NoExecute"}]
    installed.admin.patch(node, {"spec": {"unschedulable": True, "taints": taints}})
    assert not await installed.detector(api).is_uninstall()


async def test_daemonset_gone(api: ApiServer, installed: Installed) -> None:
    """The DaemonSet does not exist any more: an uninstall, with nothing learnt before."""
    installed.admin.delete(f"{installed.daemonsets}/agent")
    assert await installed.detector(api).is_uninstall()


async def test_daemonset_being_deleted(api: ApiServer, installed: Installed) -> None:
    """A DaemonSet that waits for its pods to end is on its way out."""
    installed.own("old", installed.make_daemonset("old", ("example.test/waits",)))
    detector = installed.detector(api)
    assert not await detector.is_uninstall()
    installed.admin.delete(f"{installed.daemonsets}/old")
    assert await detector.is_uninstall()


async def test_node_not_selected_any_more(api: ApiServer, installed: Installed) -> None:
    """A node that loses the label for which it was chosen loses the agent for good."""
    detector = installed.detector(api)
    installed.label_node({"kubernetes.io/os": None})
    assert await detector.is_uninstall()
    installed.label_node(LINUX)
    assert not await detector.is_uninstall()


async def test_daemonset_made_anew(api: ApiServer, installed: Installed) -> None:
    """L17: one of the same name that selects the node brings the next agent."""
    detector = installed.detector(api)
    await detector.learn()
    installed.admin.delete(f"{installed.daemonsets}/agent")
    installed.make_daemonset("agent")
    assert not await detector.is_uninstall()


async def test_adopted_by_another_daemonset(api: ApiServer, installed: Installed) -> None:
    """Who owns the pod now decides, not who did at the start."""
    detector = installed.detector(api)
    await detector.learn()
    installed.admin.delete(f"{installed.daemonsets}/agent")
    installed.own("agent-2", installed.make_daemonset("agent-2"))
    assert not await detector.is_uninstall()


async def test_api_that_does_not_say(
    api: ApiServer, proxy: FaultProxy, installed: Installed
) -> None:
    """L16, L17: whatever the API cannot tell is an upgrade, and the log says why."""
    detector = installed.detector(api)
    await detector.learn()
    installed.admin.delete(f"{installed.daemonsets}/agent")
    with structlog.testing.capture_logs() as logs:
        for status in (401, 403, 429, 500, 503):
            proxy.answer(status, match="daemonsets")
            assert not await detector.is_uninstall()
        proxy.answer(404, "page not found", times=2)
        assert not await detector.is_uninstall(), "that may be anybody's answer"
        await proxy.down()
        assert not await detector.is_uninstall()
        await proxy.up()
        proxy.hold()
        assert not await detector.is_uninstall(timeout=0.2)
        proxy.release()
    assert [line["event"] for line in logs] == ["taken for an upgrade"] * 8
    assert all(line["reason"] for line in logs)
    assert "no answer from the API in 0.2 s" in logs[-1]["reason"]
    assert await detector.is_uninstall()


@pytest.mark.parametrize("finalizers", [(), ("example.test/wait",)], ids=["gone", "being deleted"])
async def test_permissions_go_with_the_daemonset(
    control_plane: ControlPlane,
    api: ApiServer,
    proxy: FaultProxy,
    installed: Installed,
    finalizers: tuple[str, ...],
) -> None:
    """L17: with all removed at once nobody may ask any more; but it was told before."""
    installed.own("doomed", installed.make_daemonset("doomed", finalizers))
    detector = installed.detector(api)
    following = asyncio.create_task(detector.follow())
    await eventually(lambda: proxy.watched("daemonsets"))
    proxy.answer(403, times=10**9)
    assert not await detector.is_uninstall()
    installed.admin.delete(f"{installed.daemonsets}/doomed")
    async with asyncio.timeout(PATIENCE):
        while not await detector.is_uninstall():  # noqa: ASYNC110 - nothing tells us
            await asyncio.sleep(0.01)
    following.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await following
    if finalizers:
        control_plane.admin.patch(
            f"{installed.daemonsets}/doomed", {"metadata": {"finalizers": None}}
        )


async def test_daemonset_that_came_back_is_no_end(
    api: ApiServer, proxy: FaultProxy, installed: Installed
) -> None:
    """L17: of a DaemonSet that was replaced, the last word counts."""
    detector = installed.detector(api)
    following = asyncio.create_task(detector.follow())
    await eventually(lambda: proxy.watched("daemonsets"))
    installed.admin.delete(f"{installed.daemonsets}/agent")
    proxy.answer(500, times=10**9)
    async with asyncio.timeout(PATIENCE):
        while not await detector.is_uninstall():  # noqa: ASYNC110 - nothing tells us
            await asyncio.sleep(0.01)
        installed.own("agent", installed.make_daemonset("agent"))
        while await detector.is_uninstall():  # noqa: ASYNC110 - nothing tells us
            await asyncio.sleep(0.01)
    following.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await following


async def test_name_is_learnt_in_the_end(
    api: ApiServer, proxy: FaultProxy, installed: Installed
) -> None:
    """The DaemonSet's name is asked for until it is known, and kept for the stop."""
    detector = installed.detector(api)
    proxy.answer(500, match="pods", times=2)
    learning = asyncio.create_task(detector.learn())
    await eventually(lambda: proxy.count("pods") == 2)
    await learning
    assert proxy.count("pods") == 3
    proxy.answer(500, match="pods")
    assert not await detector.is_uninstall()
    assert proxy.count("daemonsets/agent$") == 1


async def test_agent_without_a_daemonset(
    control_plane: ControlPlane, api: ApiServer, installed: Installed
) -> None:
    """A pod that nobody owns says so at the start, and never leaves for good."""
    control_plane.admin.patch(installed.pod, {"metadata": {"ownerReferences": None}})
    detector = installed.detector(api)
    with structlog.testing.capture_logs() as logs:
        await detector.learn()
        assert not await detector.is_uninstall()
    assert [line["event"] for line in logs] == [
        "an uninstall will not be noticed",
        "taken for an upgrade",
    ]


async def test_cancelled_while_it_learns(
    api: ApiServer, proxy: FaultProxy, installed: Installed
) -> None:
    """An agent that stops before it has learnt anything stops."""
    proxy.hold()
    learning = asyncio.create_task(installed.detector(api).learn())
    await eventually(lambda: proxy.count() == 1)
    learning.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await learning
    assert learning.cancelled()
    proxy.release()


@pytest.mark.parametrize(
    "odd",
    [
        {},
        {"metadata": 7},
        {"metadata": {"ownerReferences": 7}},
        {"metadata": {"ownerReferences": [{"controller": True, "kind": "DaemonSet", "name": 7}]}},
    ],
)
async def test_own_pod_in_an_odd_shape(
    api: ApiServer, installed: Installed, proxy: FaultProxy, odd: Mapping[str, object]
) -> None:
    """An answer that is no pod is no fault that ends the agent, and no uninstall."""
    detector = installed.detector(api)
    proxy.answer(200, json.dumps(odd), match="/pods/")
    await detector.learn()
    proxy.answer(200, json.dumps(odd), match="/pods/")
    assert not await detector.is_uninstall()
