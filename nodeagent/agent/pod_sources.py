"""Where pods come from, who finds their namespaces, and who is told: a folder, or a cluster."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
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

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What differs between the two."""

    source: PodSource
    netns_finder: NetnsFinder[Netns]
    reporter: Reporter
    pod: Callable[[str, str], Awaitable[Pod | None]] | None = None
    """Asks for a pod, by namespace and name, of which the source may not have told yet."""
    namespace: Callable[[str], Awaitable[Namespace | None]] | None = None
    """Likewise for a Kubernetes namespace. Both raise ``RetryError``."""
    deliver: Callable[[], Coroutine[None, None, None]] | None = None
    """Tells the cluster, for as long as it runs."""


def from_folder(folder: str, verifier: Verifier) -> Origin:
    """Pods from a folder of manifests, which name their namespaces themselves."""
    return Origin(
        source=ManifestFolder(folder),
        netns_finder=AnnotatedNetnsFinder(verifier),
        reporter=LogReporter(),
    )


@contextlib.asynccontextmanager
async def from_cluster(
    settings: Settings, api: ApiServer, verifier: Verifier
) -> AsyncIterator[Origin]:
    """Pods from the Kubernetes API, and their namespaces from the container runtime."""
    from nodeagent.netns.finding import opened_finder  # noqa: PLC0415 - gRPC takes 9 MiB

    labels = deciding_labels(settings.ambient_enablement_selector)
    pods = ClusterPods(api, settings.node_name, labels=labels)
    status = ClusterReporter(api, settings.node_name)
    async with opened_finder(
        verifier, endpoint=settings.container_runtime_endpoint, prefix=settings.host_prefix
    ) as netns_finder:
        yield Origin(
            source=pods,
            netns_finder=netns_finder,
            reporter=status,
            pod=_retried(pods.pod),
            namespace=_retried(pods.namespace),
            deliver=status.run,
        )


def _retried(ask: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
    async def asked(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await ask(*args, **kwargs)
        except (ApiError, ProjectionError) as error:
            raise RetryError(str(error)) from error

    return asked
