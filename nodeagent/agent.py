"""The composition root: builds the parts, runs them together, stops them in order."""

import asyncio
import contextlib
import signal
import socket
from collections.abc import AsyncIterator
from functools import partial

import structlog

from nodeagent import kernel
from nodeagent.admin.server import serve_admin
from nodeagent.cluster.logged import LoggedStatus
from nodeagent.cluster.manifests import ManifestFolder
from nodeagent.cluster.source import NamespaceGone, NamespaceSeen, PodGone, PodSeen, Synced
from nodeagent.config import Settings, require_pod_source
from nodeagent.descriptors import make_room
from nodeagent.mesh.eligibility import Policy, Wanted
from nodeagent.mesh.enrolment import Parts
from nodeagent.mesh.errors import RetryError
from nodeagent.mesh.reconciler import Reconciler
from nodeagent.mesh.table import Table
from nodeagent.netns.annotated import AnnotatedNamespaces
from nodeagent.netns.namespace import NetworkNamespace
from nodeagent.netns.threads import NamespaceThreads
from nodeagent.netns.verify import Verifier, host_namespaces
from nodeagent.redirect.backend import Backends
from nodeagent.redirect.errors import RedirectError
from nodeagent.redirect.intent import Intent
from nodeagent.redirect.iptables_choice import find_variant
from nodeagent.redirect.iptables_programs import Variant
from nodeagent.redirect.probe_takeover import TakingOver, host_probes_for
from nodeagent.redirect.redirector import PodRedirector
from nodeagent.sockets import listening
from nodeagent.zds.book import Book
from nodeagent.zds.server import ZdsServer

log = structlog.get_logger()

_EXPECTED_DESCRIPTORS = 4096
"""Three for each pod, and more pods than any node runs."""
FIRST_LOOK_TIMEOUT = 10.0
"""Seconds; then ztunnel is served though a pod was not looked at yet. It keeps such pods."""


async def run(settings: Settings) -> int:
    """Run the agent until SIGTERM or SIGINT; redirection stays. Returns the exit status.

    Raises ``OSError`` where a socket or a namespace cannot be had, with a text for people.
    """
    kernel.share_malloc_arena()
    make_room(_EXPECTED_DESCRIPTORS)
    serving = asyncio.create_task(_serve(settings), name="agent")
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, serving.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await serving
    log.info("stopped; redirection stays in place")
    return 0


async def uninstall(settings: Settings) -> bool:
    """Take out the host's rules and sets, for good; return whether any stood.

    Not for an upgrade: probes of enrolled pods fail until the next agent runs.
    Raises ``RetryError``, ``OSError``.
    """
    with contextlib.closing(NamespaceThreads(1)) as threads:
        variant = await _iptables_variant(settings, threads)
        async with _host_probes(settings, threads, variant) as probes:
            return await probes.uninstall()


async def _serve(settings: Settings) -> None:
    log.info("starting", node=settings.node_name, pods_from=settings.pod_manifests)
    source = ManifestFolder(require_pod_source(settings))
    tasks = asyncio.TaskGroup()
    missing = ["the first list of pods", "a first look at each pod"]
    async with contextlib.AsyncExitStack() as stack:
        threads = stack.enter_context(contextlib.closing(NamespaceThreads()))
        variant = await _iptables_variant(settings, threads)
        probes = await stack.enter_async_context(_host_probes(settings, threads, variant))
        book = Book(lambda uid: reconciler.look_at(uid))  # noqa: PLW0108 - made below
        parts = Parts(
            namespaces=AnnotatedNamespaces(Verifier(threads, host_namespaces(settings.host_netns))),
            redirector=PodRedirector(
                threads,
                Intent.from_settings(settings),
                Backends.choose(variant),
                lambda uid: reconciler.stirred(uid),  # noqa: PLW0108 - made below
            ),
            ztunnels=book,
            probes=probes,
            reporter=LoggedStatus(),
            removal_grace=settings.removal_grace,
        )
        reconciler = Reconciler(
            _policy(settings), parts, tasks, verify_interval=settings.verify_interval
        )
        table = reconciler.table
        # A ztunnel that connects meanwhile waits in the backlog: quicker than its own back-off.
        listener = stack.enter_context(
            listening(
                settings.ztunnel_uds_address, socket.SOCK_SEQPACKET, setting="ZTUNNEL_UDS_ADDRESS"
            )
        )
        await stack.enter_async_context(
            serve_admin(
                settings.admin_socket,
                workloads=lambda: [row.describe() for row in table],
                missing=lambda: missing,
            )
        )
        await probes.start()
        await stack.enter_async_context(tasks)
        synced = asyncio.Event()
        tasks.create_task(_follow(source, table, synced), name="pod source")
        await synced.wait()
        del missing[0]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FIRST_LOOK_TIMEOUT):
                await reconciler.looked_at_all()
        await _prune(probes, table)
        missing.clear()
        log.info("ready", pods=len(table), zds=settings.ztunnel_uds_address)
        await ZdsServer(book, peer_uids=settings.zds_peer_uids).serve(listener)


@contextlib.asynccontextmanager
async def _host_probes(
    settings: Settings, threads: NamespaceThreads, variant: Variant | None
) -> AsyncIterator[TakingOver]:
    """The probe set of the host that the settings name. Raises ``OSError``."""
    with _host_namespace(settings) as host:
        probes = host_probes_for(
            variant,
            threads,
            host,
            probe_v4=settings.host_probe_snat_ip,
            probe_v6=settings.host_probe_snat_ipv6,
            ipv6=settings.ambient_ipv6,
        )
        async with contextlib.aclosing(probes):
            yield probes


async def _prune(probes: TakingOver, table: Table[NetworkNamespace]) -> None:
    enrolled = [row.pod for row in table if row.decision.wanted is not Wanted.NO and not row.gone]
    try:
        await probes.prune(enrolled)
    except RetryError as error:
        # What is in the set too long does no harm that would justify not to start.
        log.warning("host probe set not pruned", reason=str(error))


async def _iptables_variant(settings: Settings, threads: NamespaceThreads) -> Variant | None:
    """Which iptables programs write the rules; None: they are written for nftables itself."""
    forced = Variant(settings.force_iptables_binary) if settings.force_iptables_binary else None
    if settings.native_nftables:
        if forced:
            log.warning("FORCE_IPTABLES_BINARY has no effect: NATIVE_NFTABLES is on")
        return None
    with _host_namespace(settings) as host:
        find = partial(find_variant, forced, settings.cni_agent_run_dir)
        try:
            variant = await threads.run(host, find)
        except RedirectError as error:
            raise RetryError(f"FORCE_IPTABLES_BINARY is not set, and {error}") from error
    log.info("rules are written through iptables", variant=str(variant))
    return variant


def _host_namespace(settings: Settings) -> NetworkNamespace:
    return NetworkNamespace.open(settings.host_netns or "/proc/thread-self/ns/net")


def _policy(settings: Settings) -> Policy:
    return Policy(
        enablement=settings.ambient_enablement_selector,
        system_namespace=settings.system_namespace,
        excluded_namespaces=settings.exclude_namespaces,
    )


async def _follow(
    source: ManifestFolder, table: Table[NetworkNamespace], synced: asyncio.Event
) -> None:
    async with contextlib.aclosing(source.events()) as events:
        async for event in events:
            match event:
                case PodSeen(pod):
                    table.pod_seen(pod)
                case PodGone(uid):
                    table.pod_gone(uid)
                case NamespaceSeen(namespace):
                    table.namespace_seen(namespace)
                case NamespaceGone(name):
                    table.namespace_gone(name)
                case Synced():
                    table.synced()
                    synced.set()
