"""The folder of manifests as a source of pods, with the kernel's own notifications."""

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Callable, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from nodeagent.cluster import manifest_folder
from nodeagent.cluster.manifest_folder import ManifestFolder
from nodeagent.cluster.source import (
    NamespaceGone,
    NamespaceSeen,
    PodEvent,
    PodGone,
    PodSeen,
    Synced,
)
from nodeagent.linux.directory_watch import FolderLostError, FolderWatch
from nodeagent.mesh.pod import Namespace, Pod, PodUID
from tests.eventually import PATIENCE, eventually


def pod(name: str, address: str = "10.0.0.1", uid: str = "", namespace: str = "demo") -> str:
    metadata = {"name": name, "namespace": namespace, **({"uid": uid} if uid else {})}
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": metadata,
            "status": {"podIPs": [{"ip": address}]},
        }
    )


class Listener:
    """Takes events in, and keeps what they add up to."""

    def __init__(self) -> None:
        self.events: list[PodEvent] = []
        self.pods: dict[PodUID, Pod] = {}
        self.namespaces: dict[str, Namespace] = {}
        self._news = asyncio.Condition()

    @property
    def names(self) -> set[str]:
        return {pod.name for pod in self.pods.values()}

    async def listen(self, folder: Path) -> None:
        async with contextlib.aclosing(ManifestFolder(str(folder)).events()) as events:
            async for event in events:
                async with self._news:
                    self._take(event)
                    self._news.notify_all()

    async def until(self, true: Callable[[], object]) -> None:
        async with asyncio.timeout(PATIENCE), self._news:
            await self._news.wait_for(lambda: bool(true()))

    def _take(self, event: PodEvent) -> None:
        self.events.append(event)
        match event:
            case PodSeen(pod):
                self.pods[pod.uid] = pod
            case PodGone(uid):
                del self.pods[uid]
            case NamespaceSeen(namespace):
                self.namespaces[namespace.name] = namespace
            case NamespaceGone(name):
                del self.namespaces[name]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "pods"
    path.mkdir()
    return path


@contextlib.asynccontextmanager
async def listening(folder: Path) -> AsyncIterator[Listener]:
    listener = Listener()
    task = asyncio.create_task(listener.listen(folder))
    try:
        if folder.exists():
            await listener.until(lambda: Synced() in listener.events)
        yield listener
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def settled(listener: Listener, folder: Path) -> None:
    """Wait until all that was done to the folder before has been seen."""
    name = f"settled-{len(listener.events)}"
    (folder / f"{name}.json").write_text(pod(name, namespace="settled"))
    await listener.until(lambda: name in listener.names)


@pytest.fixture
def logs() -> Iterator[list[Any]]:
    with capture_logs() as entries:
        yield entries


async def said(entries: list[Any], event: str) -> None:
    await eventually(lambda: any(entry["event"] == event for entry in entries))


def refused(entries: list[Any]) -> list[str]:
    return [entry["error"] for entry in entries if entry["event"].startswith("manifest ")]


async def test_all_that_exists_is_told_before_synced(folder: Path) -> None:
    """A pod source says "synced" once, after every pod and namespace that was there."""
    (folder / "a.yaml").write_text(
        """
apiVersion: v1
kind: Namespace
metadata: {name: demo, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Pod
metadata:
  name: web
  namespace: demo
  uid: 2c48913c-b29f-11e7-9350-020968147796
  labels: {app: web}
  annotations: {nodeagent.io/netns: /run/netns/web, other: thing}
  creationTimestamp: 2024-01-01T00:00:00Z
spec: {serviceAccountName: shop, hostNetwork: false}
status:
  phase: Pending
  podIP: 10.0.0.7
  podIPs: [{ip: 10.0.0.7}, {ip: "fd00::7"}]
"""
    )
    (folder / "b.json").write_text(
        json.dumps({"kind": "List", "apiVersion": "v1", "items": [json.loads(pod("db"))]})
    )
    async with listening(folder) as listener:
        assert listener.events[-1] == Synced()
        assert listener.namespaces == {
            "demo": Namespace("demo", {"istio.io/dataplane-mode": "ambient"})
        }
        assert listener.pods[PodUID("2c48913c-b29f-11e7-9350-020968147796")] == Pod(
            uid=PodUID("2c48913c-b29f-11e7-9350-020968147796"),
            name="web",
            namespace="demo",
            labels={"app": "web"},
            annotations={"nodeagent.io/netns": "/run/netns/web"},
            addresses=(ip_address("10.0.0.7"), ip_address("fd00::7")),
            service_account="shop",
            phase="Pending",
        )
        assert listener.names == {"web", "db"}


async def test_a_file_is_followed_through_its_life(folder: Path) -> None:
    """Writing, changing and deleting a file each reach the listener, and nothing else does."""
    async with listening(folder) as listener:
        (folder / "web.json").write_text(pod("web"))
        await listener.until(lambda: listener.names == {"web"})
        (folder / "web.json").write_text(pod("web", "10.0.0.2"))
        await listener.until(
            lambda: [p.addresses for p in listener.pods.values()] == [(ip_address("10.0.0.2"),)]
        )
        rewritten = json.dumps(json.loads(pod("web", "10.0.0.2")), indent=2)
        (folder / "web.json").write_text(rewritten)
        (folder / ".web.json").write_text(pod("editor"))
        (folder / "web.json~").write_text(pod("backup"))
        await settled(listener, folder)
        seen = [e for e in listener.events if isinstance(e, PodSeen) and e.pod.name == "web"]
        assert len(seen) == 2
        (folder / "web.json").unlink()
        await listener.until(lambda: "web" not in listener.names)
        assert listener.namespaces.keys() == {"settled"}
        assert not {"editor", "backup"} & listener.names


@pytest.mark.parametrize("batch", [1, 4096])
async def test_a_pod_without_uid_keeps_it_when_its_file_is_renamed(
    folder: Path, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A derived UID depends on the pod's name alone: moving a file removes nobody, ever so briefly.

    A rename is two notifications, which can be read together or one by one.
    """
    monkeypatch.setattr("nodeagent.linux.directory_watch._BATCH", batch)
    (folder / "a.json").write_text(pod("web"))
    async with listening(folder) as listener:
        (folder / "a.json").rename(folder / "b.json")
        await settled(listener, folder)
        assert not [event for event in listener.events if isinstance(event, PodGone)]
        (folder / "b.json").unlink()
        await listener.until(lambda: "web" not in listener.names)


async def test_a_file_with_an_error_leaves_every_pod_as_it_was(
    folder: Path, logs: list[Any]
) -> None:
    """An error is reported once, with its place, and touches no pod, this file's included."""
    (folder / "other.json").write_text(pod("other"))
    (folder / "web.yaml").write_text(pod("web"))
    async with listening(folder) as listener:
        before = dict(listener.pods)
        (folder / "web.yaml").write_text(pod("web") + "\n---\n" + pod("bad", "10.0.0.300"))
        await settled(listener, folder)
        os.utime(folder / "web.yaml")
        await settled(listener, folder)
        assert refused(logs) == [
            'web.yaml, document 2: status.podIPs[0].ip: "10.0.0.300" is not an IP address'
        ]
        assert before.items() <= listener.pods.items()
        (folder / "web.yaml").write_text(pod("mended"))
        await listener.until(lambda: {"mended", "other"} <= listener.names)
        assert "web" not in listener.names


async def test_a_truncated_file_removes_nobody(folder: Path, logs: list[Any]) -> None:
    """L9: a file that is empty, as at the start of a rewrite, says nothing about its pods."""
    (folder / "web.json").write_text(pod("web"))
    async with listening(folder) as listener:
        (folder / "web.json").write_text("")
        await settled(listener, folder)
        assert "web" in listener.names
        assert refused(logs) == ["web.json, the file is empty"]


async def test_a_new_file_is_read_when_it_was_written(folder: Path, logs: list[Any]) -> None:
    """A file that is still being written is no pod yet, and no error either."""
    async with listening(folder) as listener:
        with (folder / "web.yaml").open("w") as file:
            file.write("kind: Pod\nmetadata: {name: we")
            file.flush()
            await settled(listener, folder)
            file.write("b}\n")
        await listener.until(lambda: "web" in listener.names)
        assert not refused(logs)


def test_another_folder_in_its_place_is_not_taken_for_the_watched_one(folder: Path) -> None:
    """L10: what is read is what is watched, by device and inode."""
    with FolderWatch(str(folder)) as watch:
        with watch.opened():
            pass
        folder.rename(folder.with_name("elsewhere"))
        folder.mkdir()
        with pytest.raises(FolderLostError), watch.opened():
            pass


async def test_an_unreadable_file_removes_nobody(folder: Path, logs: list[Any]) -> None:
    """L9: what cannot be read any more says nothing; a FIFO in its place is not waited for."""
    (folder / "web.json").write_text(pod("web"))
    async with listening(folder) as listener:
        os.mkfifo(folder / "fifo")
        (folder / "fifo").rename(folder / "web.json")
        await settled(listener, folder)
        os.utime(folder / "web.json")
        await settled(listener, folder)
        assert "web" in listener.names
        assert refused(logs) == ["web.json, not a regular file"]


async def test_a_namespace_without_document_is_known(folder: Path) -> None:
    """A pod's namespace is told before the pod, and falls back to no labels with its document."""
    async with listening(folder) as listener:
        (folder / "web.json").write_text(pod("web"))
        await listener.until(lambda: listener.names == {"web"})
        assert listener.events[1] == NamespaceSeen(Namespace("demo"))
        document = folder / "demo.yaml"
        document.write_text("kind: Namespace\nmetadata: {name: demo, labels: {a: b}}\n")
        await listener.until(lambda: listener.namespaces["demo"].labels == {"a": "b"})
        document.unlink()
        await listener.until(lambda: listener.namespaces["demo"].labels == {})
        (folder / "web.json").unlink()
        await listener.until(lambda: not listener.namespaces)
        assert listener.events[-1] == NamespaceGone("demo")


@pytest.mark.parametrize(
    ("first", "second", "what"),
    [
        (pod("web", uid="u1"), pod("other", uid="u1"), "UID u1"),
        (pod("web", uid="u1"), pod("web", uid="u2"), "pod demo/web"),
    ],
)
async def test_of_two_of_the_same_the_first_counts(
    folder: Path, logs: list[Any], first: str, second: str, what: str
) -> None:
    """Two files that claim one UID or name: the first in order is used, the other reported once."""
    (folder / "b.json").write_text(first)
    async with listening(folder) as listener:
        (folder / "c.json").write_text(second)
        await settled(listener, folder)
        await settled(listener, folder)
        assert listener.pods[PodUID("u1")].name == "web"
        assert "u2" not in listener.pods
        assert refused(logs) == [f"c.json, document 1: {what} is in b.json already"]
        (folder / "b.json").unlink()
        await listener.until(lambda: json.loads(second)["metadata"]["uid"] in listener.pods)


async def test_a_folder_that_is_away_removes_nobody(folder: Path, logs: list[Any]) -> None:
    """L9: a folder that was moved away keeps its pods until one is back at its place."""
    (folder / "web.json").write_text(pod("web"))
    (folder / "old.json").write_text(pod("old"))
    async with listening(folder) as listener:
        folder.rename(folder.with_name("elsewhere"))
        (folder.with_name("elsewhere") / "web.json").unlink()
        await said(logs, "pod manifests are away")
        assert listener.names == {"web", "old"}
        replacement = folder.with_name("new")
        replacement.mkdir()
        (replacement / "web.json").write_text(pod("web"))
        replacement.rename(folder)
        await listener.until(lambda: listener.names == {"web"})
        await settled(listener, folder)
        events = [entry["event"] for entry in logs]
        assert events == ["pod manifests are away", "pod manifests are back"]
        assert not [e for e in listener.events if isinstance(e, PodGone) and e.uid in listener.pods]


async def test_a_folder_that_is_deleted_takes_its_files_along(folder: Path) -> None:
    """Deleting the folder deletes its files first: their pods go, whatever is seen when."""
    for number in range(50):
        (folder / f"{number}.json").write_text(pod(f"web-{number}"))
    async with listening(folder) as listener:
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
        await listener.until(lambda: not listener.pods)
        folder.mkdir()
        (folder / "web.json").write_text(pod("web"))
        await listener.until(lambda: listener.names == {"web"})


async def test_a_folder_that_is_not_there_yet_is_not_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """L4: an unknown set of pods is not an empty one; it is synced when the folder appears."""
    monkeypatch.setattr(manifest_folder, "FIRST_RETRY", 0)
    folder = tmp_path / "later"
    with capture_logs() as entries:
        async with listening(folder) as listener:
            await said(entries, "pod manifests are away")
            for _ in range(100):  # as many looks, none of which is news
                await asyncio.sleep(0)
            assert not listener.events
            folder.mkdir()
            await listener.until(lambda: listener.events == [Synced()])
    assert [entry["event"] for entry in entries] == [
        "pod manifests are away",
        "pod manifests are back",
    ]


async def test_a_configmap_volume_is_followed(folder: Path) -> None:
    """Kubelet swaps a mounted ConfigMap by one rename of `..data`; files are links through it."""
    for version, address in (("..1", "10.0.0.1"), ("..2", "10.0.0.2")):
        (folder / version).mkdir()
        (folder / version / "web.json").write_text(pod("web", address))
    (folder / "..data").symlink_to("..1")
    (folder / "web.json").symlink_to("..data/web.json")
    async with listening(folder) as listener:
        (folder / "..data_tmp").symlink_to("..2")
        (folder / "..data_tmp").rename(folder / "..data")
        await listener.until(
            lambda: [p.addresses for p in listener.pods.values()] == [(ip_address("10.0.0.2"),)]
        )


async def test_links_count_like_files(folder: Path, tmp_path: Path) -> None:
    """A symbolic or hard link to a manifest is one, from the moment it is made."""
    (tmp_path / "one").write_text(pod("one"))
    (tmp_path / "two").write_text(pod("two"))
    async with listening(folder) as listener:
        (folder / "one.json").symlink_to(tmp_path / "one")
        (folder / "two.json").hardlink_to(tmp_path / "two")
        await listener.until(lambda: listener.names == {"one", "two"})


async def test_an_overflow_of_the_kernels_queue_loses_nothing(folder: Path) -> None:
    """Whatever happened while the queue was full is found by looking at everything."""
    (folder / "old.json").write_text(pod("old"))
    with open("/proc/sys/fs/inotify/max_queued_events", encoding="ascii") as limit:
        events = int(limit.read()) + 10
    async with listening(folder) as listener:
        for name in ("x", "y"):
            (folder / name).touch()
        for number in range(events):
            os.utime(folder / "xy"[number % 2])
        (folder / "new.json").write_text(pod("new"))
        (folder / "old.json").unlink()
        await listener.until(lambda: listener.names == {"new"})


async def test_every_descriptor_is_given_back(folder: Path) -> None:
    """Stopping to listen leaves no descriptor behind, nor does a folder that comes and goes."""
    before = set(os.listdir("/proc/self/fd"))
    async with listening(folder) as listener:
        for _ in range(3):
            listener.events.clear()
            (folder / "web.json").write_text(pod("web"))
            await listener.until(lambda: listener.names == {"web"})
            (folder / "web.json").unlink()
            folder.rmdir()
            await listener.until(lambda: not listener.names)
            folder.mkdir()
    assert set(os.listdir("/proc/self/fd")) == before
