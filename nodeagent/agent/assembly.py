"""What works together for the pods of one node, made from the settings and connected.

Both the running agent and an uninstallation that releases the pods need all of this. The
order is that of what needs what: threads that enter network namespaces, the host's rules
for probes, where pods come from, then the table of workloads. The table is made before the
parts that have news of pods, and the reconciler, which works on that news, is made last.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import structlog

from nodeagent.agent.host import host_path, host_probes, iptables_variant
from nodeagent.agent.pod_sources import Origin, from_cluster, from_folder
from nodeagent.cluster.api import ApiServer
from nodeagent.cluster.source import (
    NamespaceGone,
    NamespaceSeen,
    PodGone,
    PodSeen,
    PodSource,
    Synced,
)
from nodeagent.config import Settings, require_manifests
from nodeagent.mesh.dependencies import Dependencies
from nodeagent.mesh.eligibility import Policy
from nodeagent.mesh.errors import RetryError
from nodeagent.mesh.reconciler import Reconciler
from nodeagent.mesh.table import Table
from nodeagent.netns.costs import NO_LIMITS
from nodeagent.netns.netns import Netns
from nodeagent.netns.threads import NetnsThreads
from nodeagent.netns.verify import Verifier, host_netns_ids
from nodeagent.observer import NOBODY, Observer
from nodeagent.probes.migration import BackendMigration
from nodeagent.redirect.backend import Backends
from nodeagent.redirect.defaults import RedirectDefaults
from nodeagent.redirect.redirector import PodRedirector
from nodeagent.zds.ztunnels import ConnectedZtunnels

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Assembly:
    """What works together for the pods of one node."""

    probes: BackendMigration
    origin: Origin
    ztunnels: ConnectedZtunnels
    redirector: PodRedirector
    threads: NetnsThreads
    policy: Policy
    reconciler: Reconciler[Netns]
    tasks: asyncio.TaskGroup

    async def start_probes(self) -> None:
        """Install the host's rules for health probes, or log why that cannot be done yet."""
        try:
            await self.probes.start()
        except RetryError as error:
            # Pods are redirected and served without these rules, and `probes.keep` tries again.
            log.error("health probes of pods cannot be let through yet", reason=str(error))  # noqa: TRY400 - no traceback: the error's text is for people

    def follow(self, on_event: Callable[[str], None] = lambda _: None) -> None:
        """Start to follow the pods, and to report on them, as tasks of the group.

        `on_event` is told of each event about a pod: ``add``, ``update`` or ``delete``.
        """
        if self.origin.deliver is not None:
            self.tasks.create_task(self.origin.deliver(), name="status")
        follow = _follow(self.origin.source, self.reconciler.table, on_event)
        self.tasks.create_task(follow, name="pod source")


@contextlib.asynccontextmanager
async def cluster_of(
    settings: Settings, observer: Observer = NOBODY
) -> AsyncIterator[ApiServer | None]:
    """The API server; None where pods come from a folder. Raises ``NoClusterError``."""
    if settings.pod_manifests is not None:
        yield None
    else:
        async with ApiServer.connect(settings.kubeconfig, observer) as api:
            yield api


@contextlib.asynccontextmanager
async def assembled(
    settings: Settings,
    api: ApiServer | None,
    tasks: asyncio.TaskGroup,
    observer: Observer = NOBODY,
) -> AsyncIterator[Assembly]:
    """Make the parts, and close them at the end of the context. They tell `observer` what happens.

    Their work is in `tasks`, which has to end before the context does. Raises ``OSError``,
    ``RetryError``.
    """
    async with contextlib.AsyncExitStack() as stack:
        threads = stack.enter_context(contextlib.closing(NetnsThreads(observer=observer)))
        # A thread of its own: work in the host's netns does not wait for work in pods (L36).
        host_threads = stack.enter_context(contextlib.closing(NetnsThreads(1, limits=NO_LIMITS)))
        variant = await iptables_variant(settings, host_threads)
        probes = await stack.enter_async_context(
            host_probes(settings, host_threads, variant, observer)
        )
        verifier = Verifier(threads, host_netns_ids(host_path(settings)))
        if api is None:
            origin = from_folder(require_manifests(settings), verifier, observer)
        else:
            origin = await stack.enter_async_context(
                from_cluster(settings, api, verifier, observer)
            )
        policy = _policy(settings)
        table = Table[Netns](policy)
        ztunnels = ConnectedZtunnels(table.wake, table.kept)
        redirector = PodRedirector(
            threads,
            RedirectDefaults.from_settings(settings),
            Backends.choose(variant),
            table.drifted,
        )
        dependencies = Dependencies(
            netns_finder=origin.netns_finder,
            redirector=redirector,
            ztunnels=ztunnels,
            probes=probes,
            reporter=origin.reporter,
            observer=observer,
            removal_grace=settings.removal_grace,
        )
        reconciler = Reconciler(
            table, dependencies, tasks, verify_interval=settings.verify_interval
        )
        yield Assembly(
            probes=probes,
            origin=origin,
            ztunnels=ztunnels,
            redirector=redirector,
            threads=threads,
            policy=policy,
            reconciler=reconciler,
            tasks=tasks,
        )


def _policy(settings: Settings) -> Policy:
    return Policy(
        enablement=settings.ambient_enablement_selector,
        system_namespace=settings.system_namespace,
        excluded_namespaces=settings.exclude_namespaces,
    )


async def _follow(source: PodSource, table: Table[Netns], on_event: Callable[[str], None]) -> None:
    async with contextlib.aclosing(source.events()) as events:
        async for event in events:
            match event:
                case PodSeen(pod):
                    on_event("add" if table.get(pod.uid) is None else "update")
                    table.pod_seen(pod)
                case PodGone(uid):
                    on_event("delete")
                    table.pod_gone(uid)
                case NamespaceSeen(namespace):
                    table.namespace_seen(namespace)
                case NamespaceGone(name):
                    table.namespace_gone(name)
                case Synced():
                    table.synced()
