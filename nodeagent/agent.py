"""The composition root: builds the parts, runs them together, stops them in order."""

import asyncio
import contextlib
import signal
import socket
from collections.abc import AsyncIterator
from functools import partial

import structlog

from nodeagent import kernel
from nodeagent.admin.server import serve_admin, serve_health
from nodeagent.chain import installer, plugin_server, uninstall_plugin
from nodeagent.cluster.api import ApiServer
from nodeagent.cluster.departure import Departure
from nodeagent.cluster.source import (
    NamespaceGone,
    NamespaceSeen,
    PodGone,
    PodSeen,
    PodSource,
    Synced,
)
from nodeagent.cluster.taint import remove_taint
from nodeagent.cni.installer import Installer
from nodeagent.config import Settings, require_manifests
from nodeagent.descriptors import make_room
from nodeagent.loop_watch import watching_loop
from nodeagent.mesh.eligibility import Policy, Wanted
from nodeagent.mesh.enrolment import Parts
from nodeagent.mesh.errors import RetryError
from nodeagent.mesh.reconciler import Reconciler
from nodeagent.mesh.table import Table
from nodeagent.netns.costs import NO_LIMITS
from nodeagent.netns.namespace import NetworkNamespace
from nodeagent.netns.threads import NamespaceThreads
from nodeagent.netns.verify import Verifier, host_namespaces
from nodeagent.origin import from_cluster, from_folder
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
_LISTS, _LOOKS, _CHAIN = (
    "the first list of pods",
    "a first look at each pod",
    "the plugin in the CNI chain",
)
_KUBELET_ASKS = ":8000"
"""Where Istio's agent answers its probes."""
FIRST_LOOK_TIMEOUT = 10.0
"""Seconds; then ztunnel is served though a pod was not looked at yet: it is told to keep it."""


async def run(settings: Settings) -> int:
    """Run the agent until SIGTERM or SIGINT; redirection stays. Returns the exit status.

    Where its DaemonSet has gone from the node, it is uninstalled then (L17). Raises
    ``OSError`` where a socket or a namespace cannot be had, ``NoClusterError`` and
    ``NoBinaryError``, each with a text for people.
    """
    kernel.share_malloc_arena()
    make_room(_EXPECTED_DESCRIPTORS)
    async with _cluster(settings) as api:
        departure = _departure(settings, api)
        serving = asyncio.create_task(_serve(settings, api, departure), name="agent")
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, serving.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            await serving
        if departure is not None and await departure.for_good():
            for line in await uninstall(settings):
                log.info("uninstalled", what=line)
        else:
            log.info("stopped; redirection stays in place")
    return 0


async def uninstall(settings: Settings) -> list[str]:
    """Take the agent out of the host and of the CNI chain, for good; say what was done.

    Not for an upgrade: probes of enrolled pods fail until the next agent runs. Pods
    that are labelled into the mesh stay redirected until they are made anew.
    Raises ``RetryError``, ``OSError``.
    """
    chain = uninstall_plugin(settings)
    with contextlib.closing(NamespaceThreads(1, limits=NO_LIMITS)) as host_threads:
        # All that is proven to be ours goes, whatever the backend.
        async with _host_probes(settings, host_threads, None) as probes:
            host = await probes.uninstall()
    return [
        *(f"the host's {what} is removed" for what in host.removed),
        *([] if host.removed else ["the host has no rules of the agent's"]),
        *(f"the host's {what}; left alone" for what in host.left),
        *(f"the host's {what}; not removed" for what in host.failed),
        *(f"{path} is as it was before" for path in chain.restored),
        *(f"{path} is removed" for path in chain.removed),
        *([f"the CNI plugin's binary stays: {chain.kept}"] if chain.kept else []),
    ]


@contextlib.asynccontextmanager
async def _cluster(settings: Settings) -> AsyncIterator[ApiServer | None]:
    """The cluster's API; None where pods come from a folder. Raises ``NoClusterError``."""
    if settings.pod_manifests is not None:
        yield None
    else:
        async with ApiServer.connect(settings.kubeconfig) as api:
            yield api


def _departure(settings: Settings, api: ApiServer | None) -> Departure | None:
    if api is None or not settings.pod_name:
        return None
    return Departure(
        api,
        pod_namespace=settings.pod_namespace,
        pod_name=settings.pod_name,
        node_name=settings.node_name,
    )


async def _serve(settings: Settings, api: ApiServer | None, departure: Departure | None) -> None:
    log.info("starting", node=settings.node_name, pods_from=settings.pod_manifests or "the cluster")
    tasks = asyncio.TaskGroup()
    missing = [_LISTS, _LOOKS]
    async with contextlib.AsyncExitStack() as stack:
        threads = stack.enter_context(contextlib.closing(NamespaceThreads()))
        # The host waits for no pod, and no pod decides how long it takes (L36).
        host_threads = stack.enter_context(
            contextlib.closing(NamespaceThreads(1, limits=NO_LIMITS))
        )
        variant = await _iptables_variant(settings, host_threads)
        probes = await stack.enter_async_context(_host_probes(settings, host_threads, variant))
        verifier = Verifier(threads, host_namespaces(_host_path(settings)))
        if api is None:
            origin = from_folder(require_manifests(settings), verifier)
        else:
            origin = await stack.enter_async_context(from_cluster(settings, api, verifier))
        book = Book(
            lambda uid: reconciler.look_at(uid),  # noqa: PLW0108 - made below
            lambda: reconciler.table.kept(),  # noqa: PLW0108 - likewise
        )
        redirector = PodRedirector(
            threads,
            Intent.from_settings(settings),
            Backends.choose(variant),
            lambda uid: reconciler.stirred(uid),  # noqa: PLW0108 - made below
        )
        parts = Parts(
            namespaces=origin.namespaces,
            redirector=redirector,
            ztunnels=book,
            probes=probes,
            reporter=origin.reporter,
            removal_grace=settings.removal_grace,
        )
        policy = _policy(settings)
        reconciler = Reconciler(policy, parts, tasks, verify_interval=settings.verify_interval)
        table = reconciler.table
        chain = installer(settings)
        if chain is not None:
            missing.append(_CHAIN)
        listener = await stack.enter_async_context(_sockets(settings, table, missing))
        try:
            await probes.start()
        except RetryError as error:
            # Pods are redirected and served without it; it is tried again all the time.
            log.error("health probes of pods cannot be let through yet", reason=str(error))  # noqa: TRY400 - the reason is the message
        # Before the first list: a plugin that waits here need not wait for a retry.
        await stack.enter_async_context(
            plugin_server(
                settings,
                table=table,
                policy=policy,
                redirector=redirector,
                origin=origin,
                missing=lambda: missing,
            )
        )
        await stack.enter_async_context(tasks)
        tasks.create_task(probes.keep(), name="host probes kept")
        if origin.deliver is not None:
            tasks.create_task(origin.deliver(), name="status")
        if departure is not None:
            tasks.create_task(departure.follow(), name="own DaemonSet")
        if chain is not None:
            tasks.create_task(chain.run(), name="CNI installer")
            tasks.create_task(_installed(chain, missing), name="CNI plugin installed")
        tasks.create_task(_follow(origin.source, table), name="pod source")
        await table.until_synced()
        missing.remove(_LISTS)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FIRST_LOOK_TIMEOUT):
                await reconciler.looked_at_all()
        await _prune(probes, table)
        missing.remove(_LOOKS)
        log.info("ready", pods=len(table), zds=settings.ztunnel_uds_address)
        # Not before: modules that are loaded at the start hold up nobody.
        stack.enter_context(watching_loop())
        if api is not None and settings.remove_startup_taint:
            tasks.create_task(_untaint(settings, api, chain), name="start-up taint")
        await ZdsServer(book, peer_uids=settings.zds_peer_uids).serve(listener)


@contextlib.asynccontextmanager
async def _sockets(
    settings: Settings, table: Table[NetworkNamespace], missing: list[str]
) -> AsyncIterator[socket.socket]:
    """Answer kubelet and ``nodeagent status``, and listen for ztunnel. Raises ``OSError``."""
    async with contextlib.AsyncExitStack() as stack:
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
        if address := _readiness_address(settings):
            await stack.enter_async_context(serve_health(address, missing=lambda: missing))
        yield listener


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
    return NetworkNamespace.open(_host_path(settings) or "/proc/thread-self/ns/net")


def _host_path(settings: Settings) -> str | None:
    """Path of the host's network namespace; None: it is the agent's own."""
    if settings.host_netns is None and settings.host_prefix:
        return settings.on_host("/proc/1/ns/net")
    return settings.host_netns


def _readiness_address(settings: Settings) -> str:
    if settings.readiness_address is None:
        return _KUBELET_ASKS if settings.pod_manifests is None else ""
    return settings.readiness_address


def _policy(settings: Settings) -> Policy:
    return Policy(
        enablement=settings.ambient_enablement_selector,
        system_namespace=settings.system_namespace,
        excluded_namespaces=settings.exclude_namespaces,
    )


async def _installed(chain: Installer, missing: list[str]) -> None:
    await chain.installed.wait()
    missing.remove(_CHAIN)


async def _untaint(settings: Settings, api: ApiServer, chain: Installer | None) -> None:
    if chain is not None:
        await chain.installed.wait()
    await remove_taint(api, settings.node_name, settings.startup_taint)


async def _follow(source: PodSource, table: Table[NetworkNamespace]) -> None:
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
