"""What a network, an API server and an etcd do to a watch: it is as if it had never broken."""

import asyncio
import contextlib
import json
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from structlog.testing import capture_logs

from nodeagent.cluster import api, listwatch
from nodeagent.cluster.cluster_pods import ClusterPods
from nodeagent.cluster.source import PodEvent, PodGone, PodSeen
from nodeagent.mesh.pod import PodUID
from tests.cluster.control_plane import ControlPlane
from tests.cluster.following import Told, connected, following
from tests.cluster.proxy import FaultProxy
from tests.eventually import eventually

WATCH_OF_PODS = "GET /api/v1/pods.*watch="
LIST_OF_PODS = r"GET /api/v1/pods\?(?!.*watch=)"

TOO_LARGE = {
    "kind": "Status",
    "code": 504,
    "message": "Too large resource version: 9, current: 1",
    "details": {"causes": [{"reason": "ResourceVersionTooLarge"}]},
}


class Cluster:
    """One test's namespace and node, seen through the proxy."""

    def __init__(
        self, control_plane: ControlPlane, namespace: str, node: str, proxy: FaultProxy, path: Path
    ) -> None:
        self.admin = control_plane.admin
        self.namespace = namespace
        self.node = node
        self.proxy = proxy
        self.config = control_plane.kubeconfig(path / "config", server=proxy.url)

    def make(self, name: str) -> PodUID:
        made = self.admin.make_pod(self.namespace, name, node=self.node)
        return PodUID(made["metadata"]["uid"])

    def delete(self, name: str) -> None:
        self.admin.delete(f"/api/v1/namespaces/{self.namespace}/pods/{name}", grace=0)

    def label(self, name: str, labels: dict[str, str]) -> None:
        path = f"/api/v1/namespaces/{self.namespace}/pods/{name}"
        self.admin.patch(path, {"metadata": {"labels": labels}})

    async def watched(self) -> None:
        """Wait until the server has answered a watch of pods."""
        await eventually(lambda: self.proxy.watched(WATCH_OF_PODS))


@pytest.fixture
def cluster(
    control_plane: ControlPlane, namespace: str, node_name: str, proxy: FaultProxy, tmp_path: Path
) -> Cluster:
    return Cluster(control_plane, namespace, node_name, proxy, tmp_path)


@contextmanager
def no_list(cluster: Cluster) -> Iterator[None]:
    """In this block, no list of pods is asked for: it resumes."""
    before = cluster.proxy.count(LIST_OF_PODS)
    yield
    assert cluster.proxy.count(LIST_OF_PODS) == before


async def test_resume_after_a_cut(cluster: Cluster) -> None:
    """A cut watch is resumed where it was: what came meanwhile is told, and nothing again."""
    old = cluster.make("a")
    async with following(cluster.config, cluster.node) as told:
        await cluster.watched()
        before = cluster.make("before")
        await told.has("a", "before")
        cluster.delete("before")
        await told.has("a")
        seen = len(told.events)
        with no_list(cluster):
            await cluster.proxy.down()
            cluster.delete("a")
            new = cluster.make("a")
            cluster.make("b")
            await cluster.proxy.up()
            await told.has("a", "b")
            assert set(told.pods) >= {new}
            assert told.events.index(PodGone(old)) < next(_seen(told.events, new))
            assert PodGone(before) not in told.events[seen:]


async def test_resume_after_the_servers_end(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A watch that the server ends in good order goes on without a list, and without a gap."""
    monkeypatch.setattr(listwatch, "WATCH_TIME", 1.0)
    async with following(cluster.config, cluster.node) as told:
        with no_list(cluster):
            await eventually(lambda: cluster.proxy.count(WATCH_OF_PODS) >= 3)
            cluster.make("a")
            await told.has("a")


@pytest.mark.parametrize("how", ["status", "event"])
async def test_gone(cluster: Cluster, how: str) -> None:
    """L9, L14: over a 410, missed deletes and a pod made again are found by UID in a new list."""
    kept, old = cluster.make("kept"), cluster.make("a")
    cluster.make("deleted")
    async with following(cluster.config, cluster.node) as told:
        await cluster.watched()
        if how == "status":
            cluster.proxy.answer_gone(match=WATCH_OF_PODS)
            await cluster.proxy.down()
        else:
            cluster.proxy.hold()
        cluster.delete("a")
        cluster.delete("deleted")
        new = cluster.make("a")
        cluster.make("made")
        seen = len(told.events)
        if how == "status":
            await cluster.proxy.up()
        else:
            status = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}
            line = json.dumps({"type": "ERROR", "object": status}).encode() + b"\n"
            assert await cluster.proxy.inject(line, match=WATCH_OF_PODS)
            cluster.proxy.release()
        await told.has("a", "kept", "made")
        assert cluster.proxy.count(LIST_OF_PODS) == 2
        assert set(told.pods) >= {kept, new}
        after = told.events[seen:]
        assert after.index(PodGone(old)) < next(_seen(after, new))
        # The one that stayed as it was is not told again.
        assert not any(isinstance(e, PodSeen) and e.pod.uid == kept for e in after)


async def test_gone_between_pages(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list whose continuation has expired is begun anew, and nothing is told of the half."""
    monkeypatch.setattr(listwatch, "PAGE", 2)
    for name in "abcde":
        cluster.make(name)
    # Only etcd itself answers by the page.
    cluster.proxy.answer(504, json.dumps(TOO_LARGE), match=LIST_OF_PODS)
    cluster.proxy.answer_gone(match="pods.*continue=")
    async with following(cluster.config, cluster.node) as told:
        assert told.names() == list("abcde")
        assert cluster.proxy.count("pods.*continue=") == 3
        assert sum(isinstance(event, PodSeen) for event in told.events) == 5
        assert not any(isinstance(event, PodGone) for event in told.events)


async def test_half_open_connection(cluster: Cluster) -> None:
    """A watch that is silent for too long is replaced, though its connection looks alive."""
    with capture_logs() as logs:
        async with following(cluster.config, cluster.node, silence=1) as told:
            await cluster.watched()
            cluster.proxy.stall()
            with no_list(cluster):
                cluster.make("a")
                await told.has("a")
    assert [log for log in logs if log["log_level"] != "debug"] == []


async def test_dead_peer(cluster: Cluster, proxy: FaultProxy) -> None:
    """The kernel is told to notice on its own that the other end of a watch is dead."""
    async with following(cluster.config, cluster.node):
        await cluster.watched()
        port = urlsplit(proxy.url).port
        command = ["ss", "-tnoH", "dport", "=", f":{port}"]

        def kept_alive() -> int:
            shown = subprocess.run(command, check=True, capture_output=True).stdout
            return shown.count(b"timer:(keepalive")

        # A connection shows its timer only while nothing else is under way on it.
        await eventually(lambda: kept_alive() >= 2)


async def test_nothing_happens(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster in which nothing happens for longer than a watch waits is no fault, and is not
    listed again for it.
    """
    monkeypatch.setattr(listwatch, "QUIET", 0.0)
    with capture_logs() as logs:
        async with following(cluster.config, cluster.node, silence=0.3) as told:
            await cluster.watched()
            with no_list(cluster):
                await eventually(lambda: cluster.proxy.count(WATCH_OF_PODS) >= 4)
                cluster.make("a")
                await told.has("a")
    assert [log for log in logs if log["log_level"] != "debug"] == []


async def test_lists_from_the_cache(cluster: Cluster) -> None:
    """Ten thousand agents that list cost etcd nothing: the first list takes what the server's
    cache has, a later one what is not older than what was seen; only what the server says it
    cannot have, because its etcd was restored, leads to etcd itself.
    """
    cluster.make("a")
    async with following(cluster.config, cluster.node) as told:
        await cluster.watched()
        assert "resourceVersion=0&" in cluster.proxy.last(LIST_OF_PODS)
        await eventually(lambda: cluster.proxy.watched("GET /api/v1/namespaces.*watch="))
        assert "resourceVersion=0&" in cluster.proxy.last(r"GET /api/v1/namespaces\?(?!.*watch=)")
        cluster.make("b")
        await told.has("a", "b")
        cluster.proxy.answer_gone(match=WATCH_OF_PODS)
        cluster.proxy.cut()
        await eventually(lambda: cluster.proxy.count(LIST_OF_PODS) == 2)
        again = cluster.proxy.last(LIST_OF_PODS)
        assert re.search(r"resourceVersion=[1-9]\d*&resourceVersionMatch=NotOlderThan", again)
        assert "limit=" not in again
        cluster.make("c")
        await told.has("a", "b", "c")
        # Or a watch on its way would be told so in vain.
        await cluster.watched()
        cluster.proxy.answer_gone(match=WATCH_OF_PODS)
        cluster.proxy.answer(504, json.dumps(TOO_LARGE), match=LIST_OF_PODS)
        cluster.proxy.cut()
        cluster.make("d")
        await told.has("a", "b", "c", "d")
        assert "resourceVersion" not in cluster.proxy.last(LIST_OF_PODS)
    assert not any(isinstance(event, PodGone) for event in told.events)


async def test_truncated_line(cluster: Cluster) -> None:
    """A line that ends in the middle is told once, in whole, after the watch was resumed."""
    async with following(cluster.config, cluster.node) as told:
        await cluster.watched()
        cluster.proxy.truncate(match=WATCH_OF_PODS)
        with no_list(cluster):
            cluster.make("a")
            await told.has("a")


@pytest.mark.parametrize(
    "line",
    [b'{"type": "ADDED", "object"\n', b"null\n", b'{"type": "ADDED"}\n'],
    ids=["broken", "null", "half"],
)
async def test_broken_line(cluster: Cluster, line: bytes) -> None:
    """A line that is no event ends the watch; what it may have hidden comes by a new list."""
    async with following(cluster.config, cluster.node) as told:
        await cluster.watched()
        await cluster.proxy.inject(line, match=WATCH_OF_PODS)
        cluster.make("a")
        await told.has("a")
        await eventually(lambda: cluster.proxy.count(LIST_OF_PODS) == 2)


async def test_giant_line(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line without end does not fill the memory; a deletion that it hid is found by a list."""
    monkeypatch.setattr(api, "MAX_OBJECT", 100_000)
    cluster.make("a")
    async with following(cluster.config, cluster.node) as told:
        await cluster.watched()
        with capture_logs() as logs:
            await cluster.proxy.inject(b"x" * 300_000, match=WATCH_OF_PODS)
            cluster.delete("a")
            await told.has()
        assert [log["reason"] for log in logs if "reason" in log] == [
            "a line of more than 100000 bytes"
        ]


@pytest.mark.parametrize("ips", [7, [7], "10.0.0.1", {"ip": []}])
async def test_odd_object(cluster: Cluster, ips: object) -> None:
    """An object that is not as it should be is passed over, said so once, and the watch goes on."""
    uid = cluster.make("a")
    async with following(cluster.config, cluster.node) as told:
        await cluster.watched()
        with capture_logs() as logs, no_list(cluster):
            odd = {"metadata": {"uid": uid, "resourceVersion": "1"}, "status": {"podIPs": ips}}
            ones: tuple[object, ...] = (odd, odd, [], "text", {"metadata": 7})
            for one in ones:
                line = json.dumps({"type": "MODIFIED", "object": one}).encode() + b"\n"
                assert await cluster.proxy.inject(line, match=WATCH_OF_PODS)
            cluster.make("b")
            await told.has("a", "b")
        # Of those that cannot be named, one line stands for all.
        assert [log["key"] for log in logs if log["event"] == "object passed over"] == [uid, ""]


async def test_odd_object_in_a_list(cluster: Cluster) -> None:
    """L9: an object that comes odd in a new list is not taken for gone, and told when it mends."""
    uid = cluster.make("a")
    async with following(cluster.config, cluster.node) as told:
        await cluster.watched()
        odd = {"metadata": {"uid": uid}, "status": {"podIPs": [{"ip": "127.0.0.1"}]}}
        page = {"metadata": {"resourceVersion": "1"}, "items": [odd, {"metadata": {}}, 7]}
        cluster.proxy.answer(200, json.dumps(page), match=LIST_OF_PODS)
        cluster.proxy.answer_gone(match=WATCH_OF_PODS)
        cluster.proxy.cut()
        cluster.make("b")
        await told.has("a", "b")
        assert PodGone(uid) not in told.events


async def test_busy_server(cluster: Cluster) -> None:
    """429: the server is left alone for as long as it asks, and the list comes then."""
    cluster.proxy.answer_busy(match=LIST_OF_PODS, retry_after=1, times=1)
    cluster.make("a")
    began = time.monotonic()
    async with following(cluster.config, cluster.node, synced=False) as told:
        await eventually(lambda: cluster.proxy.count(LIST_OF_PODS) == 2)
        assert time.monotonic() - began >= 1
        await told.has("a")
        assert cluster.proxy.count(LIST_OF_PODS) == 2


async def test_failing_server(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """500 with a text, on list and watch: said once with that text, then it works again."""
    monkeypatch.setattr(listwatch, "QUIET", 0.0)
    cluster.proxy.answer(500, "etcd is\nunwell", match=LIST_OF_PODS, times=3)
    cluster.proxy.answer(500, "etcd is unwell", match=WATCH_OF_PODS, times=2)
    with capture_logs() as logs:
        async with following(cluster.config, cluster.node) as told:
            await eventually(lambda: cluster.proxy.count(WATCH_OF_PODS) == 3)
            cluster.make("a")
            await told.has("a")
    said = [log for log in logs if log["event"] == "cannot be followed; trying again"]
    assert [log["reason"] for log in said] == ["etcd is unwell (500)"] * 2
    assert cluster.proxy.count(LIST_OF_PODS) == 4


async def test_version_from_the_future(cluster: Cluster) -> None:
    """A server that refuses every resumption, as after a restored etcd, is asked for a list."""
    async with following(cluster.config, cluster.node) as told:
        await cluster.watched()
        cluster.proxy.answer(504, "Too large resource version", match=WATCH_OF_PODS, times=5)
        cluster.proxy.cut()
        cluster.make("a")
        await told.has("a")
        assert cluster.proxy.count(LIST_OF_PODS) == 2


async def test_backing_off(cluster: Cluster) -> None:
    """A server that is away is not asked all the time, and found soon when it is back."""
    async with following(cluster.config, cluster.node) as told:
        await cluster.watched()
        cluster.proxy.answer(503, match="", times=10**6)
        cluster.proxy.cut()
        before = cluster.proxy.count(WATCH_OF_PODS)
        with pytest.raises(TimeoutError):
            await eventually(lambda: cluster.proxy.count() > before + 1000, 1)
        # 5 ms doubled: ten tries reach 2.5 s.
        assert cluster.proxy.count(WATCH_OF_PODS) - before < 12
        cluster.proxy.obey()
        cluster.make("a")
        await told.has("a")


async def test_restart_of_the_server(cluster: Cluster, control_plane: ControlPlane) -> None:
    """An API server that is killed and comes back changes nothing that is known."""
    cluster.make("a")
    async with following(cluster.config, cluster.node) as told:
        before = len(told.events)
        await control_plane.restart(kill=True)
        cluster.make("b")
        await told.has("a", "b")
        assert not any(isinstance(event, PodGone) for event in told.events[before:])


@pytest.mark.parametrize("end", ["deleted", "labeled"])
async def test_answer_that_the_watch_has_overtaken(cluster: Cluster, end: str) -> None:
    """An answer to a direct question that comes after news of a later state gives that later
    state, and no pod where it has gone: nobody would ever tell of it again.
    """
    cluster.make("first")
    told = Told()
    async with connected(cluster.config) as api:
        source = ClusterPods(api, cluster.node)
        async with contextlib.aclosing(source.events()) as events, asyncio.TaskGroup() as tasks:
            listening = tasks.create_task(told.listen(events), name="listening")
            await told.has("first")
            await cluster.watched()
            uid = cluster.make("a")
            await told.has("a", "first")
            late = cluster.proxy.keep_answer(match="GET .*/pods/a$")
            asking = tasks.create_task(source.pod(cluster.namespace, "a"), name="asking")
            await eventually(lambda: cluster.proxy.kept == 1)
            if end == "deleted":
                cluster.delete("a")
                await told.has("first")
            else:
                cluster.label("a", {"istio.io/dataplane-mode": "ambient"})
                await eventually(lambda: bool(told.pods[uid].labels))
            late.set()
            assert await asking == told.pods.get(uid)
            listening.cancel()


async def test_answer_that_a_list_does_not_have_yet(cluster: Cluster) -> None:
    """A list from before a pod was asked for does not make the pod gone, nor an older state
    of it the latest.
    """
    cluster.make("first")
    told = Told()
    async with connected(cluster.config) as api:
        source = ClusterPods(api, cluster.node)
        late = cluster.proxy.keep_answer(match=LIST_OF_PODS)
        async with contextlib.aclosing(source.events()) as events, asyncio.TaskGroup() as tasks:
            listening = tasks.create_task(told.listen(events), name="listening")
            await eventually(lambda: cluster.proxy.kept == 1)
            uid = cluster.make("a")
            cluster.label("first", {"istio.io/dataplane-mode": "ambient"})
            assert await source.pod(cluster.namespace, "a")
            assert await source.pod(cluster.namespace, "first")
            late.set()
            await told.has("a", "first")
            listening.cancel()
    assert PodGone(uid) not in told.events
    firsts = [event.pod for event in told.events if isinstance(event, PodSeen)]
    assert all(pod.labels for pod in firsts if pod.name == "first")


async def test_namespace_that_the_watch_has_overtaken(cluster: Cluster) -> None:
    """The labels of a namespace that was asked for are never older than those that were told."""
    told = Told()
    async with connected(cluster.config) as api:
        source = ClusterPods(api, cluster.node)
        async with contextlib.aclosing(source.events()) as events, asyncio.TaskGroup() as tasks:
            listening = tasks.create_task(told.listen(events), name="listening")
            await eventually(lambda: cluster.proxy.watched("GET /api/v1/namespaces.*watch="))
            late = cluster.proxy.keep_answer(match=f"GET .*/namespaces/{cluster.namespace}$")
            asking = tasks.create_task(source.namespace(cluster.namespace), name="asking")
            await eventually(lambda: cluster.proxy.kept == 1)
            labels = {"metadata": {"labels": {"istio.io/dataplane-mode": "ambient"}}}
            cluster.admin.patch(f"/api/v1/namespaces/{cluster.namespace}", labels)
            await eventually(lambda: len(told.namespaces[cluster.namespace].labels) == 2)
            late.set()
            assert await asking == told.namespaces[cluster.namespace]
            listening.cancel()


def _seen(events: list[PodEvent], uid: str) -> Iterator[int]:
    for number, event in enumerate(events):
        if isinstance(event, PodSeen) and event.pod.uid == uid:
            yield number
