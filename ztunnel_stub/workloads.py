"""All pods of the node that the stub serves, or will as soon as it can."""

from collections.abc import Mapping
from types import MappingProxyType

import structlog
from structlog.typing import FilteringBoundLogger

from ztunnel_stub.codec import Add, Delete, Keep, Request, SnapshotSent
from ztunnel_stub.sockets import ListenError
from ztunnel_stub.state import Snapshot
from ztunnel_stub.workload import Serving, Workload

log: FilteringBoundLogger = structlog.get_logger()


class Workloads:
    """Does what the agent asks. Owns every workload from its add until it drains."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self._running: dict[str, Workload] = {}
        self._pending: dict[str, Workload] = {}
        self._snapshot: Snapshot | None = None

    @property
    def running(self) -> Mapping[str, Workload]:
        """By UID: those whose listeners are open."""
        return MappingProxyType(self._running)

    @property
    def pending(self) -> Mapping[str, Workload]:
        """By UID: those whose listeners could not be opened yet."""
        return MappingProxyType(self._pending)

    @property
    def ready(self) -> bool:
        """Connected, with a whole snapshot, and nothing pending."""
        return self.snapshot_complete and not self._pending

    @property
    def snapshot_complete(self) -> bool:
        """Whether the agent has sent the whole snapshot on the present connection."""
        return self._snapshot is not None and self._snapshot.complete

    def connected(self) -> None:
        """Expect a snapshot. What runs goes on; what was pending is the agent's to ask again."""
        self._forget_pending()
        self._snapshot = Snapshot()

    def disconnected(self) -> None:
        """Go on serving, but not ready."""
        self._snapshot = None

    async def apply(self, request: Request) -> None:
        """Do what the agent asks on this connection.

        Raises ``ListenError`` when the pod is pending now, ``ProtocolError`` when the
        connection must end. Takes over an add's namespace.
        """
        if self._snapshot is None:
            raise RuntimeError("a request without a connection")
        match request:
            case Add(uid=uid):
                self._snapshot.add(uid)
                await self._add(request)
            case Keep(uid=uid):
                self._snapshot.keep(uid)
            case Delete(uid=uid):
                self._snapshot.delete()
                self._remove(uid)
            case SnapshotSent():
                for uid in self._snapshot.finish([*self._running, *self._pending]):
                    self._remove(uid)
                log.info("snapshot complete", workloads=len(self._running), pending=self._names())

    def hold(self, add: Add) -> None:
        """Treat `add` as if its listeners could not be opened; what runs already goes on."""
        if self._snapshot is not None:
            self._snapshot.add(add.uid)
        if self._same(add):
            add.namespace.close()
            return
        self._remove(add.uid)
        self._pending[add.uid] = self._workload(add)

    async def retry(self) -> None:
        """Try again to open the listeners of those that are pending."""
        for uid, workload in list(self._pending.items()):
            try:
                await workload.start()
            except ListenError as error:
                log.warning("still pending", pod=str(workload.info), uid=uid, error=str(error))
            else:
                self._up(self._pending.pop(uid))

    def close(self) -> None:
        """Accept nothing more anywhere. What is open drains in the tasks of `Serving`."""
        self._forget_pending()
        for uid in list(self._running):
            self._remove(uid)

    async def _add(self, add: Add) -> None:
        if self._same(add):
            add.namespace.close()
            return
        # Also where it is pending: the agent's descriptor and details are newer.
        self._remove(add.uid)
        workload = self._workload(add)
        try:
            await workload.start()
        except ListenError as error:
            log.warning("workload pending", pod=str(add.info), uid=add.uid, error=str(error))
            self._pending[add.uid] = workload
            raise
        except BaseException:
            workload.discard()
            raise
        self._up(workload)

    def _up(self, workload: Workload) -> None:
        self._running[workload.uid] = workload
        # A snapshot of a thousand has one line of its own; writing theirs takes a fifth of it.
        say = log.info if self.snapshot_complete else log.debug
        say("workload up", pod=str(workload.info), uid=workload.uid, netns=str(workload.netns))

    def _same(self, add: Add) -> bool:
        running = self._running.get(add.uid)
        return running is not None and running.netns == add.namespace.id

    def _workload(self, add: Add) -> Workload:
        return Workload(uid=add.uid, info=add.info, namespace=add.namespace, serving=self._serving)

    def _remove(self, uid: str) -> None:
        if (pending := self._pending.pop(uid, None)) is not None:
            pending.discard()
        if (workload := self._running.pop(uid, None)) is None:
            return
        log.info("workload drains", pod=str(workload.info), uid=uid, netns=str(workload.netns))
        workload.close()
        self._serving.tasks.create_task(workload.drain(), name=f"drain {uid}")

    def _forget_pending(self) -> None:
        while self._pending:
            self._pending.popitem()[1].discard()

    def _names(self) -> list[str]:
        return [str(workload.info) for workload in self._pending.values()]
