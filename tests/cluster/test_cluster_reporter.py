"""The annotation on pods, against a real API server that can be spoiled."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import structlog.testing

from nodeagent.cluster import outbox
from nodeagent.cluster.api import ApiServer
from nodeagent.cluster.cluster_reporter import ClusterReporter
from nodeagent.cluster.events import MAX_TEXT, MOST_IN_WINDOW, Events
from nodeagent.mesh.annotation import Redirection
from nodeagent.mesh.pod import REDIRECTION, Pod, PodUID
from nodeagent.observer import Reason
from tests.cluster.client import Object
from tests.cluster.control_plane import ControlPlane
from tests.cluster.proxy import FaultProxy
from tests.eventually import PATIENCE, eventually

ENABLED, PENDING = Redirection.ENABLED, Redirection.PENDING


class Shop:
    """A namespace of the test's own, and the pods in it."""

    def __init__(self, control_plane: ControlPlane, namespace: str) -> None:
        self.admin, self.namespace = control_plane.admin, namespace

    def pod(self, name: str = "web") -> Pod:
        made = self.admin.make_pod(self.namespace, name, node="n")
        return Pod(uid=PodUID(made["metadata"]["uid"]), name=name, namespace=self.namespace)

    def delete(self, pod: Pod) -> None:
        self.admin.delete(f"/api/v1/namespaces/{self.namespace}/pods/{pod.name}", grace=0)

    def annotation(self, name: str = "web") -> str | None:
        found = self.admin.get(f"/api/v1/namespaces/{self.namespace}/pods/{name}")
        value: str | None = found["metadata"].get("annotations", {}).get(REDIRECTION)
        return value

    def events(self) -> list[Object]:
        events: list[Object] = self.admin.get(f"/api/v1/namespaces/{self.namespace}/events")[
            "items"
        ]
        return events


@pytest.fixture
def shop(control_plane: ControlPlane, namespace: str) -> Shop:
    return Shop(control_plane, namespace)


@pytest.fixture
async def api(
    control_plane: ControlPlane, proxy: FaultProxy, tmp_path: Path
) -> AsyncIterator[ApiServer]:
    kubeconfig = control_plane.kubeconfig(tmp_path / "kubeconfig", server=proxy.url)
    async with ApiServer.connect(kubeconfig) as api:
        yield api


@contextlib.asynccontextmanager
async def reporting(api: ApiServer) -> AsyncIterator[ClusterReporter]:
    status = ClusterReporter(api, "n")
    running = asyncio.create_task(status.run())
    try:
        yield status
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


async def delivered(status: ClusterReporter) -> None:
    await eventually(lambda: status.undelivered == 0)


async def test_each_change_costs_one_request(api: ApiServer, proxy: FaultProxy, shop: Shop) -> None:
    """L2: the annotation is set and taken off again by one patch each."""
    pod = shop.pod()
    async with reporting(api) as status:
        status.report(pod, ENABLED)
        await delivered(status)
        assert shop.annotation() == "enabled"
        assert len(proxy.requests) == 1
        status.report(pod, None)
        await delivered(status)
        assert shop.annotation() is None
        assert len(proxy.requests) == 2


async def test_removal_where_nothing_is_left(api: ApiServer, shop: Shop) -> None:
    """No annotation, or no pod, is what a removal wants, and a pod that is gone wants nothing."""
    bare, gone = shop.pod("bare"), shop.pod("gone")
    shop.delete(gone)
    async with reporting(api) as status:
        status.report(bare, None)
        status.report(gone, None)
        await delivered(status)
        status.report(gone, ENABLED)
        await delivered(status)


async def test_pod_of_the_same_name(api: ApiServer, proxy: FaultProxy, shop: Shop) -> None:
    """L14: late news of a pod never lands on the one that was made anew under its name."""
    old = shop.pod()
    shop.delete(old)
    shop.pod()
    async with reporting(api) as status:
        status.report(old, ENABLED)
        await delivered(status)
        assert shop.annotation() is None
        assert proxy.count("PATCH") == 1


@pytest.mark.parametrize("code", [409, 422])
async def test_refusal_that_is_not_about_the_uid(
    api: ApiServer, proxy: FaultProxy, shop: Shop, code: int
) -> None:
    """L2: a conflict with another writer is not taken for a pod that was replaced."""
    proxy.answer(code, match="PATCH")
    async with reporting(api) as status:
        status.report(shop.pod(), ENABLED)
        await delivered(status)
        assert shop.annotation() == "enabled"


async def test_short_trouble(
    api: ApiServer, proxy: FaultProxy, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An API server that is away for a moment, as at its restart, is nothing to hear of."""
    monkeypatch.setattr(outbox, "QUIET", 1000.0)
    pod = shop.pod()
    proxy.answer(503, match="PATCH|POST", times=4)
    with structlog.testing.capture_logs() as logs:
        async with reporting(api) as status:
            status.report(pod, ENABLED)
            status.failed(pod, "for a test")
            await delivered(status)
            await eventually(lambda: bool(shop.events()))
    assert shop.annotation() == "enabled"
    assert not any(line["log_level"] == "warning" for line in logs)


async def test_api_server_away(
    api: ApiServer, proxy: FaultProxy, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The latest state of each pod is kept, and delivered when the API server is back."""
    monkeypatch.setattr(outbox, "QUIET", 0.1)
    pods = [shop.pod(f"web-{n}") for n in range(20)]
    await proxy.down()
    with structlog.testing.capture_logs() as logs:
        async with reporting(api) as status:
            for pod in pods:
                status.report(pod, PENDING)
            await eventually(
                lambda: any(line["event"] == "cannot be delivered yet" for line in logs)
            )
            for pod in pods:
                status.report(pod, ENABLED)
            assert status.undelivered == len(pods)
            await proxy.up()
            await delivered(status)
    assert {shop.annotation(pod.name) for pod in pods} == {"enabled"}
    assert proxy.count("PATCH") == len(pods), "what was overtaken is not sent"
    words = [line["event"] for line in logs if line.get("what") == "annotation"]
    assert words == ["cannot be delivered yet", "delivered again"]


async def test_connections_that_stay_silent(api: ApiServer, proxy: FaultProxy, shop: Shop) -> None:
    """A pod's latest state wins, also over one whose answer was lost."""
    pod = shop.pod()
    async with reporting(api) as status:
        proxy.hold()
        status.report(pod, ENABLED)
        await eventually(lambda: proxy.count("PATCH") == 1)
        status.report(pod, None)
        proxy.cut()
        await eventually(lambda: proxy.count("PATCH") == 2)
        proxy.release()
        await delivered(status)
        assert shop.annotation() is None


async def test_half_open_connection(
    api: ApiServer, proxy: FaultProxy, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that has died unnoticed is left for a new one."""
    monkeypatch.setattr(outbox, "REQUEST_TIMEOUT", 0.2)
    pod = shop.pod()
    async with reporting(api) as status:
        status.report(pod, PENDING)
        await delivered(status)
        proxy.stall()
        status.report(pod, ENABLED)
        await delivered(status)
        assert shop.annotation() == "enabled"


async def test_answer_that_makes_no_sense(api: ApiServer, proxy: FaultProxy, shop: Shop) -> None:
    """A pod that the server shows in an odd shape is no fault of ours: it is asked for again."""
    pod = shop.pod()
    proxy.answer(422, match="PATCH")
    proxy.answer(200, "{}", match="GET", headers={"Content-Type": "application/json"})
    with structlog.testing.capture_logs() as logs:
        async with reporting(api) as status:
            status.report(pod, ENABLED)
            await delivered(status)
    assert shop.annotation() == "enabled"
    assert not any(line["event"] == "unexpected failure" for line in logs)


async def test_state_that_is_on_its_way_is_not_sent_twice(
    api: ApiServer, proxy: FaultProxy, shop: Shop
) -> None:
    """News that repeats what is being delivered costs nothing; other news goes after it."""
    pod = shop.pod()
    async with reporting(api) as status:
        proxy.hold()
        status.report(pod, PENDING)
        await eventually(lambda: proxy.count("PATCH") == 1)
        status.report(pod, PENDING)
        proxy.release()
        await delivered(status)
        assert proxy.count("PATCH") == 1
        proxy.hold()
        status.report(pod, ENABLED)
        await eventually(lambda: proxy.count("PATCH") == 2)
        status.report(pod, None)
        proxy.release()
        await delivered(status)
        assert shop.annotation() is None
        assert proxy.count("PATCH") == 3


async def test_one_pod_does_not_delay_another(
    api: ApiServer, proxy: FaultProxy, shop: Shop
) -> None:
    """L13: more pods than there are places wait for their next try; another is done at once."""
    proxy.answer_busy(retry_after=30, match="pods/bad-", times=1000)
    bad = [shop.pod(f"bad-{n}") for n in range(12)]
    good = shop.pod("good")
    async with reporting(api) as status:
        for pod in bad:
            status.report(pod, ENABLED)
        await eventually(lambda: proxy.count("pods/bad-") == len(bad))
        status.report(good, ENABLED)
        await eventually(lambda: status.undelivered == len(bad))
        assert shop.annotation("good") == "enabled"
        for pod in bad:
            status.forget(pod.uid)
        assert status.undelivered == 0


async def test_busy_server_is_left_alone(api: ApiServer, proxy: FaultProxy, shop: Shop) -> None:
    """429: nothing is sent before Retry-After has passed."""
    pod = shop.pod()
    proxy.answer_busy(retry_after=1, match="PATCH")
    async with reporting(api) as status:
        start = time.monotonic()
        status.report(pod, ENABLED)
        await delivered(status)
        assert time.monotonic() - start > 1
        assert proxy.count("PATCH") == 2


async def test_missing_permission(
    control_plane: ControlPlane, proxy: FaultProxy, shop: Shop, tmp_path: Path
) -> None:
    """A missing verb is named with its role, once, and all is delivered when it is granted."""
    admin, pods = control_plane.admin, [shop.pod("a"), shop.pod("b")]
    token = control_plane.token_for(shop.namespace, "default")
    kubeconfig = control_plane.kubeconfig(tmp_path / "k", token=token, server=proxy.url)
    admin.make_role(
        shop.namespace, {"apiGroups": [""], "resources": ["pods/status"], "verbs": ["patch"]}
    )
    with structlog.testing.capture_logs() as logs:
        async with ApiServer.connect(kubeconfig) as api, reporting(api) as status:
            for pod in pods:
                status.report(pod, ENABLED)
            await eventually(lambda: proxy.count("PATCH") >= 4)
            admin.bind(shop.namespace, namespace=shop.namespace, account="default")
            await delivered(status)
    (line,) = [line for line in logs if line["event"] == "cannot be delivered yet"]
    assert "403" in line["error"]
    assert line["needs"].startswith('verb patch on pods/status: ClusterRole "nodeagent"')
    assert shop.annotation("b") == "enabled"


async def test_stop_delivers_what_is_left(api: ApiServer, proxy: FaultProxy, shop: Shop) -> None:
    """What waits for its next try when the agent stops is tried once more."""
    pod = shop.pod()
    proxy.answer_busy(retry_after=60, match="PATCH")
    async with reporting(api) as status:
        status.report(pod, ENABLED)
        await eventually(lambda: proxy.count("PATCH") == 1)
    assert shop.annotation() == "enabled"


async def test_stop_is_not_held_up(
    api: ApiServer, proxy: FaultProxy, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A silent API server delays the stop by a second, not by the patience for a request."""
    monkeypatch.setattr(outbox, "REQUEST_TIMEOUT", 2 * PATIENCE)
    pod = shop.pod()
    proxy.hold()
    async with reporting(api) as status:
        status.report(pod, ENABLED)
        status.failed(pod, "it never works")
        await eventually(lambda: proxy.count() == 2)
        start = time.monotonic()
    assert time.monotonic() - start < PATIENCE
    proxy.release()


async def test_names_cannot_leave_their_place(
    api: ApiServer, proxy: FaultProxy, shop: Shop
) -> None:
    """Whatever a pod's name holds, it stays one segment of the path."""
    pod = Pod(uid=PodUID("1"), name="../../../nodes/n?x", namespace=shop.namespace)
    async with reporting(api) as status:
        status.report(pod, ENABLED)
        await delivered(status)
    where = f"/api/v1/namespaces/{shop.namespace}/pods"
    assert proxy.requests == [f"PATCH {where}/..%2F..%2F..%2Fnodes%2Fn%3Fx/status"]


async def test_events_on_the_pod(api: ApiServer, shop: Shop) -> None:
    """L19, L39, L41: what is late, contested, refused, broken or failed is said on the pod."""
    pod, other = shop.pod(), shop.pod("neighbor")
    async with reporting(api) as status:
        status.unprotected(pod)
        status.contested(pod, 5)
        status.failed(pod, "ü" * MAX_TEXT)
        status.broken(pod, "no ztunnel is connected")
        status.netns_conflict(pod, "net:[1]", other)
        await eventually(lambda: len(shop.events()) == 5)
    events = {event["reason"]: event for event in shop.events()}
    assert events.keys() == {
        "EnrolledLate",
        "RedirectionContested",
        "EnrollmentFailed",
        "RedirectionBroken",
        "NetnsConflict",
    }
    assert "no ztunnel is connected" in events["RedirectionBroken"]["message"]
    assert "net:[1]" in events["NetnsConflict"]["message"]
    assert other.name not in events["NetnsConflict"]["message"], "another tenant's, perhaps"
    late = events["EnrolledLate"]
    assert (late["type"], late["count"], late["source"]["host"]) == ("Warning", 1, "n")
    assert late["involvedObject"]["uid"] == pod.uid
    assert "ran before it was redirected" in late["message"]
    assert "repaired 5 times" in events["RedirectionContested"]["message"]
    assert events["EnrollmentFailed"]["message"] == "ü" * (MAX_TEXT // 2)


async def test_events_are_few(api: ApiServer, shop: Shop) -> None:
    """What was said is not repeated, and a tenant cannot make the agent flood the API."""
    pod, other = shop.pod(), shop.pod("other")
    async with reporting(api) as status:
        status.failed(pod, "reason 0")
        await eventually(lambda: len(shop.events()) == 1)
        for number in range(100):
            status.failed(pod, f"reason {number // 2}")
        status.failed(other, "reason 0")
        await eventually(lambda: len(shop.events()) > MOST_IN_WINDOW)
    told = sorted((event["involvedObject"]["name"], event["message"]) for event in shop.events())
    expected = [("web", f"reason {number}") for number in range(MOST_IN_WINDOW)]
    assert told == [("other", "reason 0"), *expected]


async def test_events_never_hold_up_annotations(
    api: ApiServer, proxy: FaultProxy, shop: Shop
) -> None:
    """Events that are refused are dropped; those that get no answer delay no annotation."""
    pods = [shop.pod(f"web-{n}") for n in range(10)]
    proxy.answer(500, match="POST", times=1000)
    async with reporting(api) as status:
        for pod in pods:
            status.unprotected(pod)
            status.report(pod, ENABLED)
        await eventually(lambda: status.undelivered == 0)
        assert {shop.annotation(pod.name) for pod in pods} == {"enabled"}
        assert shop.events() == []


async def test_refused_event_is_dropped(api: ApiServer, proxy: FaultProxy, shop: Shop) -> None:
    """A namespace that is being deleted takes no events: that is said, and left."""
    pod = shop.pod()
    shop.admin.delete(f"/api/v1/namespaces/{shop.namespace}")
    with structlog.testing.capture_logs() as logs:
        async with reporting(api) as status:
            status.failed(pod, "never works")
            await eventually(lambda: any(line["event"] == "event refused" for line in logs))
    assert proxy.count("POST") == 1


async def test_without_a_right_to_make_events(
    control_plane: ControlPlane, shop: Shop, tmp_path: Path
) -> None:
    """That costs one line in all, and the events; not a line for each of them."""
    control_plane.admin.make_account(shop.namespace, "mute")
    token = control_plane.token_for(shop.namespace, "mute")
    config = control_plane.kubeconfig(tmp_path / "mute", token=token)
    with structlog.testing.capture_logs() as logs:
        async with ApiServer.connect(config) as api:
            events = Events(api, "n")
            running = asyncio.create_task(events.run())
            for number in range(3):
                events.record(shop.pod(f"web-{number}"), Reason.FAILED, "never works")
            await eventually(lambda: not events.undelivered)
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running
    [line] = [line for line in logs if line["log_level"] == "warning"]
    assert line["event"] == "no events are made on pods"
    assert "verb create on events" in line["needs"]
