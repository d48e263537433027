"""Where pods come from: a folder of manifests, or a cluster.

The two differ in more than the source of pods: in a folder, the author of a manifest names
the pod's netns, and there is nobody to report to but the log. `Origin` has all of that.
"""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

from nodeagent.cluster.api import ApiError, ApiServer
from nodeagent.cluster.cluster_pods import ClusterPods
from nodeagent.cluster.cluster_reporter import ClusterReporter
from nodeagent.cluster.log_reporter import LogReporter
from nodeagent.cluster.manifest_folder import ManifestFolder
from nodeagent.cluster.projection import ProjectionError
from nodeagent.cluster.source import PodSource
from nodeagent.config import Settings
from nodeagent.mesh.dependencies import NetnsFinder, Reporter
from nodeagent.mesh.eligibility import deciding_labels
from nodeagent.mesh.errors import RetryError
from nodeagent.mesh.pod import Namespace, Pod
from nodeagent.netns.annotated import AnnotatedNetnsFinder
from nodeagent.netns.netns import Netns
from nodeagent.netns.verify import Verifier
from nodeagent.observer import Observer

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """A source of pods, with what belongs to it."""

    source: PodSource
    netns_finder: NetnsFinder[Netns]
    reporter: Reporter
    pod: Callable[[str, str], Awaitable[Pod | None]] | None = None
    """Asks for a pod, by namespace and name, of which the source may not have told yet.

    None: there is nobody to ask. Raises ``RetryError``."""
    namespace: Callable[[str], Awaitable[Namespace | None]] | None = None
    """Likewise for a Kubernetes namespace."""
    deliver: Callable[[], Coroutine[None, None, None]] | None = None
    """Delivers what the reporter was told, until cancelled; None: nothing has to be delivered."""
    waiting: Callable[[], Mapping[str, int]] | None = None
    """How much of that the API server has not taken yet, by what it is; None: see `deliver`."""


def from_folder(folder: str, verifier: Verifier, observer: Observer) -> Origin:
    """Pods from a folder of manifests, each with the path of its netns."""
    return Origin(
        source=ManifestFolder(folder),
        netns_finder=AnnotatedNetnsFinder(verifier),
        reporter=LogReporter(observer),
    )


@contextlib.asynccontextmanager
async def from_cluster(
    settings: Settings, api: ApiServer, verifier: Verifier, observer: Observer
) -> AsyncIterator[Origin]:
    """Pods from the Kubernetes API, and their netns from the container runtime or procfs.

    Raises nothing by itself: an API server or runtime that is away is tried again.
    """
    from nodeagent.netns.finding import opened_finder  # noqa: PLC0415 - gRPC takes 9 MiB

    labels = deciding_labels(settings.ambient_enablement_selector)
    pods = ClusterPods(api, settings.node_name, labels=labels)
    status = ClusterReporter(api, settings.node_name, observer)
    async with opened_finder(
        verifier, endpoint=settings.container_runtime_endpoint, prefix=settings.host_prefix
    ) as netns_finder:
        yield Origin(
            source=pods,
            netns_finder=netns_finder,
            reporter=status,
            pod=_translated(pods.pod),
            namespace=_translated(pods.namespace),
            deliver=status.run,
            waiting=status.waiting,
        )


def _translated(ask: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
    async def asked(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await ask(*args, **kwargs)
        except (ApiError, ProjectionError) as error:
            raise RetryError(str(error)) from error

    return asked
