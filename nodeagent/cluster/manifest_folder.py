"""A folder of Kubernetes manifests as the source of pods."""

import asyncio
import hashlib
import os
import stat
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, field

import structlog

from nodeagent.cluster.manifest import (
    MAX_SIZE,
    Document,
    Identity,
    Manifest,
    ManifestError,
    parse,
)
from nodeagent.cluster.source import (
    NamespaceGone,
    NamespaceSeen,
    PodEvent,
    PodGone,
    PodSeen,
    Synced,
)
from nodeagent.linux.directory_watch import Change, FolderWatch
from nodeagent.mesh.pod import Namespace, Pod, PodUID

log = structlog.get_logger()

FIRST_RETRY, LAST_RETRY = 0.02, 1.0
"""Seconds between two attempts to find a folder that is away, at the first and later."""


class ManifestFolder:
    """Watches the files in one folder whose names end in .yaml, .yml or .json.

    A file that cannot be used is reported once for each change of it, and its pods
    stay as they were until the file is corrected or deleted. Where the folder is away,
    its pods stay until the folder is back (L9). Of two pods with the
    same UID or name the first counts, in the order of files and documents.
    """

    def __init__(self, path: str) -> None:
        self._path = path

    def pods(self) -> tuple[Pod, ...]:
        """The pods as the files have them now. Raises ``OSError`` without the folder."""
        files = _Files()
        with FolderWatch(self._path) as watch:
            files.read(watch, Change(everywhere=True))
        return tuple(files.world().pods.values())

    async def events(self) -> AsyncGenerator[PodEvent, None]:
        """Tell what the files say, then ``Synced``, then each change, without end.

        Whoever stops listening closes the generator (``contextlib.aclosing``): it
        owns a descriptor.
        """
        files, told = _Files(), _World()
        synced, away, retry = False, False, FIRST_RETRY
        while True:
            try:
                with FolderWatch(self._path) as watch:
                    change = Change(everywhere=True)
                    while True:
                        await asyncio.to_thread(files.read, watch, change)
                        if away:
                            log.info("pod manifests are back", folder=self._path)
                        away, retry = False, FIRST_RETRY
                        for event in told.become(files.world()):
                            yield event
                        if not synced:
                            synced = True
                            yield Synced()
                        change = await watch.changed()
            except OSError as error:
                if not away:
                    log.warning("pod manifests are away", folder=self._path, error=str(error))
                away = True
            for event in told.become(files.world()):
                yield event
            await asyncio.sleep(retry)
            retry = min(2 * retry, LAST_RETRY)


@dataclass(slots=True)
class _World:
    """The pods and namespaces in all files."""

    pods: dict[PodUID, Pod] = field(default_factory=dict)
    namespaces: dict[str, Namespace] = field(default_factory=dict)

    def become(self, other: "_World") -> Iterator[PodEvent]:
        """Take over what `other` has; yield the events that tell the difference."""
        pods, namespaces = self.pods, self.namespaces
        self.pods, self.namespaces = other.pods, other.namespaces
        # Ends first, because a new pod may have the name or address of one that is gone.
        for uid in pods.keys() - other.pods.keys():
            yield PodGone(uid)
        for name, namespace in other.namespaces.items():
            if namespaces.get(name) != namespace:
                yield NamespaceSeen(namespace)
        for uid, pod in other.pods.items():
            # Nearly all are the very same object; comparing values takes ten times as long.
            if (old := pods.get(uid)) is not pod and old != pod:
                yield PodSeen(pod)
        for name in namespaces.keys() - other.namespaces.keys():
            yield NamespaceGone(name)


@dataclass(frozen=True, slots=True)
class _File:
    """A file as it was found last, with the documents that it had when it was valid last."""

    found: str = ""
    """A hash of the content, or why the content could not be read."""
    documents: tuple[Document, ...] = ()


class _Files:
    """The files of the folder as they were last read."""

    def __init__(self) -> None:
        self._files: dict[str, _File] = {}
        self._conflicts: set[str] = set()

    def read(self, watch: FolderWatch, change: Change) -> None:
        """Read the files that `change` names. Raises ``OSError`` if the folder is not there."""
        try:
            with watch.opened() as folder:
                names = change.names
                if change.everywhere:
                    names |= frozenset(os.listdir(folder)) | self._files.keys()
                for name in filter(_is_manifest, names):
                    self._read_one(folder, name)
        except OSError:
            for name in change.deleted:
                self._files.pop(name, None)
            raise

    def world(self) -> _World:
        """What all files have together; logs each contradiction that is new."""
        world = _World()
        places: dict[Identity, str] = {}
        conflicts: set[str] = set()
        for name in sorted(self._files):
            for document in self._files[name].documents:
                first = next((key for key in document.identities if key in places), None)
                if first is not None:
                    where = f"{name}, document {document.number}"
                    conflicts.add(f"{where}: {' '.join(first)} is in {places[first]} already")
                    continue
                places.update(dict.fromkeys(document.identities, name))
                match document.value:
                    case Pod() as pod:
                        world.pods[pod.uid] = pod
                    case Namespace() as namespace:
                        world.namespaces[namespace.name] = namespace
        for pod in world.pods.values():
            # A namespace without labels needs no manifest.
            world.namespaces.setdefault(pod.namespace, Namespace(pod.namespace))
        for conflict in sorted(conflicts - self._conflicts):
            log.warning("manifest ignored", error=conflict)
        self._conflicts = conflicts
        return world

    def _read_one(self, folder: int, name: str) -> None:
        before = self._files.get(name, _File())
        found = ""
        try:
            data = _content(folder, name)
            found = hashlib.sha256(data).hexdigest()
            if found == before.found:
                return
            manifest = _parsed(data)
        except FileNotFoundError:
            self._files.pop(name, None)
        except ManifestError as error:
            found = found or str(error)
            if found != before.found:
                log.warning("manifest refused", error=f"{name}, {error}")
            self._files[name] = _File(found, before.documents)
        else:
            if manifest.ignored:
                log.debug("kinds ignored", file=name, kinds=manifest.ignored)
            self._files[name] = _File(found, manifest.documents)


def _parsed(data: bytes) -> Manifest:
    try:
        return parse(data)
    except ManifestError:
        raise
    except Exception as error:
        # A fault in this agent's code must not take the pods of other files away.
        log.exception("unexpected failure")
        raise ManifestError(f"cannot be read: {type(error).__name__}") from error


def _is_manifest(name: str) -> bool:
    return name.endswith((".yaml", ".yml", ".json")) and not name.startswith(".")


def _content(folder: int, name: str) -> bytes:
    try:
        # O_NONBLOCK: a FIFO is not waited for.
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY, dir_fd=folder)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise ManifestError("not a regular file")
            with open(fd, "rb", closefd=False) as file:
                return file.read(MAX_SIZE + 1)
        finally:
            os.close(fd)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ManifestError(f"cannot be read: {error.strerror}") from error
