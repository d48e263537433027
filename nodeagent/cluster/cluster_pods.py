"""A cluster as the source of pods: the pods of one node, and all namespaces.

Two list-and-watch loops run in tasks and put events into one queue. Events of pods wait for
the first list of namespaces, because the labels of a pod's namespace decide with its own.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Container
from functools import partial
from urllib.parse import quote

from nodeagent import validators as checks
from nodeagent.cluster import projection
from nodeagent.cluster.api import ApiError, ApiServer
from nodeagent.cluster.known import Gone, Seen
from nodeagent.cluster.listwatch import SILENCE, Listed, ListWatch, Resource
from nodeagent.cluster.source import (
    NamespaceGone,
    NamespaceSeen,
    PodEvent,
    PodGone,
    PodSeen,
    Synced,
)
from nodeagent.mesh.pod import Namespace, Pod, PodUID

_PODS = "/api/v1/pods"
_NAMESPACES = "/api/v1/namespaces"
_METADATA = "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io"
_METADATA_LIST = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"
_AHEAD = 256
"""Events that may wait in the queue; while it is full, the connections are not read."""


class ClusterPods:
    """Follows the pods of one node, and every namespace; see `source.PodSource`."""

    def __init__(
        self,
        api: ApiServer,
        node_name: str,
        *,
        labels: Container[str] | None = None,
        silence: float = SILENCE,
    ) -> None:
        """`labels`: the keys of those that are kept of pods and namespaces; None: all."""
        self._api = api
        self._node_name = node_name
        pods = Resource(
            name="pods",
            path=_PODS,
            selector={"fieldSelector": f"spec.nodeName={node_name}"},
            key=projection.pod_uid,
            project=partial(projection.pod, labels=labels),
        )
        # Told apart by name, not UID: a namespace that was deleted and made again is one whose
        # labels have changed.
        namespaces = Resource(
            name="namespaces",
            path=_NAMESPACES,
            selector={},
            key=projection.name,
            project=partial(projection.namespace, labels=labels),
            list_accept=_METADATA_LIST,
            watch_accept=_METADATA,
        )
        self._pods = ListWatch(api, pods, silence=silence)
        self._namespaces = ListWatch(api, namespaces, silence=silence)

    async def events(self) -> AsyncGenerator[PodEvent, None]:
        """Tell what exists, namespaces first, then ``Synced``, then each change, without end.

        Whoever stops listening closes the generator (``contextlib.aclosing``): it owns
        connections and tasks.
        """
        queue: asyncio.Queue[PodEvent | Exception] = asyncio.Queue(_AHEAD)
        following = asyncio.create_task(self._follow(queue), name="pods and namespaces")
        try:
            while True:
                event = await queue.get()
                if isinstance(event, Exception):
                    raise event
                yield event
        finally:
            following.cancel()
            await asyncio.wait([following])

    async def pod(self, namespace: str, name: str) -> Pod | None:
        """The pod of this name, if it is this node's, as the API has it now.

        Where the `events` have told something newer than the answer, that is returned: None
        for a pod that is gone. The pod's end will be among the `events`.

        Raises ``ApiError``, ``ProjectionError``.
        """
        if not (_is_name(namespace, 63) and _is_name(name, 253)):
            return None
        path = f"{_NAMESPACES}/{quote(namespace)}/pods/{quote(name)}"

        async def get() -> projection.Raw | None:
            raw = await self._asked(path, "application/json")
            return raw if raw and projection.node_of(raw) == self._node_name else None

        return await self._pods.ask(get)

    async def namespace(self, name: str) -> Namespace | None:
        """The namespace of this name, as the API has it now. See `pod`.

        Raises ``ApiError``, ``ProjectionError``.
        """
        if not _is_name(name, 63):
            return None
        path = f"{_NAMESPACES}/{quote(name)}"
        return await self._namespaces.ask(lambda: self._asked(path, _METADATA))

    async def _asked(self, path: str, accept: str) -> projection.Raw | None:
        try:
            return await self._api.get(path, accept=accept)
        except ApiError as error:
            if error.missing:
                return None
            raise

    async def _follow(self, queue: asyncio.Queue[PodEvent | Exception]) -> None:
        listed = asyncio.Event()
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._follow_namespaces(queue, listed), name="namespaces")
                tasks.create_task(self._follow_pods(queue, listed), name="pods")
        except Exception as error:  # noqa: BLE001 - raised again by `events`
            await queue.put(error)

    async def _follow_namespaces(
        self, queue: asyncio.Queue[PodEvent | Exception], listed: asyncio.Event
    ) -> None:
        async with contextlib.aclosing(self._namespaces.changes()) as changes:
            async for change in changes:
                match change:
                    case Seen(namespace):
                        await queue.put(NamespaceSeen(namespace))
                    case Gone(name):
                        await queue.put(NamespaceGone(name))
                    case Listed():
                        listed.set()

    async def _follow_pods(
        self, queue: asyncio.Queue[PodEvent | Exception], listed: asyncio.Event
    ) -> None:
        synced = False
        async with contextlib.aclosing(self._pods.changes()) as changes:
            async for change in changes:
                # Else it would be decided twice whether the pod belongs in the mesh.
                await listed.wait()
                match change:
                    case Seen(pod):
                        await queue.put(PodSeen(pod))
                    case Gone(uid):
                        await queue.put(PodGone(PodUID(uid)))
                    case Listed() if not synced:
                        synced = True
                        await queue.put(Synced())


def _is_name(text: str, limit: int) -> bool:
    try:
        checks.name(limit)(text)
    except ValueError:
        return False
    return True
