"""Finding a pod's netns: at the path that was handed over, where it was last, or by asking.

Whom to ask is a `Way`: the container runtime, then the node's processes. Each path that is
found is verified, because it may lead to another pod's netns, or to one that is gone.
"""

import contextlib
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from nodeagent.mesh.errors import GiveUpError, RetryError
from nodeagent.mesh.pod import IPAddress, Pod
from nodeagent.netns.cri import ContainerRuntime, RuntimeSandboxes
from nodeagent.netns.netns import Netns, NetnsId
from nodeagent.netns.procfs import Processes
from nodeagent.netns.verify import Verifier

_LAST_TIME = "last time"
_LONGEST_PATH = 1024
"""Characters; runtimes have less than 100."""
MOST_REMEMBERED = 1024
"""Pods; kubelet takes 110 unless told otherwise, and no node runs more than 1,000."""


@dataclass(frozen=True, slots=True)
class _Found:
    """Where a pod's netns was, by which addresses it was verified, and who named the path."""

    path: str
    addresses: tuple[IPAddress, ...]
    named_by: str


class Way(Protocol):
    """Something that knows where pods' network namespaces are."""

    @property
    def name(self) -> str:
        """The name in error messages."""

    async def paths(self, uid: str) -> Sequence[str]:
        """Paths on the host at which the pod's netns may be, the likeliest first.

        `uid` is what the runtime calls the pod (`Pod.sandbox_uid`). Raises ``RetryError``.
        """


class NodeNetnsFinder:
    """Finds the network namespaces of this node's pods."""

    def __init__(self, verifier: Verifier, *ways: Way, prefix: str) -> None:
        """`ways` are tried in this order; `prefix` is before every path on the host."""
        self._verifier = verifier
        self._ways = ways
        self._prefix = prefix
        self._remembered: OrderedDict[str, _Found] = OrderedDict()

    async def find(self, pod: Pod, handed_over: str | None, held: Netns | None = None) -> Netns:
        """Open and verify; see `nodeagent.mesh.dependencies.NetnsFinder`.

        A netns that is not the pod's is passed over: a process of this pod may be passing
        through another pod's netns (L10). Where no path leads to the pod's netns, the
        ``RetryError`` has what each way said (L4).
        """
        if not pod.addresses:
            raise RetryError("has no address yet, by which its namespace could be told")
        if held is not None and self._is_still(pod, handed_over, held):
            return held
        failures: dict[str, None] = {}  # each once, in order
        async with contextlib.aclosing(self._candidates(pod, handed_over, failures)) as candidates:
            async for origin, path in candidates:
                try:
                    found = await self._verifier.open(self._prefix + path, pod)
                except (RetryError, GiveUpError) as error:
                    failures[f"{origin}: {error}"] = None
                else:
                    self._remember(pod.uid, _Found(path, pod.addresses, origin))
                    return found
        self._remembered.pop(pod.uid, None)
        raise RetryError(f"network namespace not found ({'; '.join(failures)})")

    def found_at(self, pod: Pod) -> str:
        """See `nodeagent.mesh.dependencies.NetnsFinder`."""
        found = self._remembered.get(pod.uid)
        return f"{found.path}, named by {found.named_by}" if found else ""

    async def _candidates(
        self, pod: Pod, handed_over: str | None, failures: dict[str, None]
    ) -> AsyncGenerator[tuple[str, str], None]:
        if handed_over is not None:
            if _is_plain(handed_over):
                yield "CNI", handed_over
            else:
                failures["CNI: no absolute path was handed over"] = None
        if (last := self._remembered.get(pod.uid)) is not None and last.path != handed_over:
            yield _LAST_TIME, last.path
        for way in self._ways:
            try:
                paths = await way.paths(pod.sandbox_uid)
            except RetryError as error:
                failures[f"{way.name}: {error}"] = None
                continue
            for path in paths:
                if _is_plain(path):
                    yield way.name, path

    def _is_still(self, pod: Pod, handed_over: str | None, held: Netns) -> bool:
        """Whether `held`, which was verified before, is still at the path where it was.

        While it is held open no other netns can have its identity.
        """
        last = self._remembered.get(pod.uid)
        if last is None or last.addresses != pod.addresses:
            return False
        if handed_over not in {None, last.path}:
            return False
        try:
            return NetnsId.of_path(self._prefix + last.path) == held.id
        except OSError:
            return False

    def _remember(self, uid: str, found: "_Found") -> None:
        last = self._remembered.get(uid)
        if last is not None and found.named_by == _LAST_TIME:
            found = replace(found, named_by=last.named_by)
        self._remembered[uid] = found
        self._remembered.move_to_end(uid)
        if len(self._remembered) > MOST_REMEMBERED:
            self._remembered.popitem(last=False)


@contextlib.asynccontextmanager
async def opened_finder(
    verifier: Verifier, *, endpoint: str, prefix: str
) -> AsyncIterator[NodeNetnsFinder]:
    """Asks the container runtime at `endpoint` ("": at its usual places), then procfs.

    `prefix` is before the host's paths, "" on a bare host.
    """
    runtime = ContainerRuntime(endpoint=endpoint, prefix=prefix)
    try:
        yield NodeNetnsFinder(verifier, RuntimeSandboxes(runtime), Processes(prefix), prefix=prefix)
    finally:
        await runtime.close()


def _is_plain(path: str) -> bool:
    return path.startswith("/") and path.isprintable() and len(path) <= _LONGEST_PATH
