"""The composition root: builds the parts, runs them together, stops them in order."""

import asyncio
import contextlib
import signal
import socket
from collections.abc import AsyncIterator

import structlog

from nodeagent.admin.server import serve_admin, serve_health
from nodeagent.agent.assembly import assembled, cluster_of
from nodeagent.agent.cni_wiring import installer, plugin_server
from nodeagent.agent.uninstall import uninstall
from nodeagent.cluster.api import ApiServer
from nodeagent.cluster.taint import remove_taint
from nodeagent.cluster.uninstall_detector import UninstallDetector
from nodeagent.cni.install.installer import Installer
from nodeagent.config import Settings
from nodeagent.linux import syscalls as kernel
from nodeagent.linux.fd_limit import raise_nofile_limit
from nodeagent.linux.unix_sockets import listening
from nodeagent.loop_watch import watching_loop
from nodeagent.mesh.eligibility import Wanted
from nodeagent.mesh.errors import RetryError
from nodeagent.mesh.reconciler import Reconciler
from nodeagent.mesh.table import Table
from nodeagent.netns.netns import Netns
from nodeagent.probes.migration import TakingOver
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
_STOPPING = 5.0
"""Seconds that are left for the stop itself when the pods have been released."""
FIRST_LOOK_TIMEOUT = 10.0
"""Seconds; then ztunnel is served though a pod was not looked at yet: it is told to keep it."""


async def run(settings: Settings) -> int:
    """Run the agent until SIGTERM or SIGINT; redirection stays. Returns the exit status.

    Where its DaemonSet has gone from the node, it is uninstalled then (L17). Raises
    ``OSError`` where a socket or a namespace cannot be had, ``NoClusterError`` and
    ``NoBinaryError``, each with a text for people.
    """
    kernel.share_malloc_arena()
    raise_nofile_limit(_EXPECTED_DESCRIPTORS)
    async with cluster_of(settings) as api:
        detector = _uninstall_detector(settings, api)
        ready: asyncio.Future[Reconciler[Netns]] = asyncio.Future()
        serving = asyncio.create_task(_serve(settings, api, detector, ready), name="agent")
        if await _told_to_stop(serving) and detector is not None and await detector.is_uninstall():
            if settings.release_pods_on_uninstall:
                # While ztunnel, the API and the plugin are still served.
                await _release(ready, detector.grace - _STOPPING)
            await _ended(serving)
            for line in (await uninstall(settings)).lines:
                log.info("uninstalled", what=line)
        else:
            await _ended(serving)
            log.info("stopped; redirection stays in place")
    return 0


async def _told_to_stop(serving: asyncio.Task[None]) -> bool:
    """Wait for a signal; False where `serving` has ended by itself. The next one ends it."""
    told = asyncio.Event()

    def signaled() -> None:
        if told.is_set():
            serving.cancel()
        told.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, signaled)
    waiting = asyncio.create_task(told.wait(), name="signal")
    await asyncio.wait({serving, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    return told.is_set()


async def _ended(serving: asyncio.Task[None]) -> None:
    """End it, unless it has ended. Raises what it has raised."""
    serving.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await serving


async def _release(ready: asyncio.Future[Reconciler[Netns]], seconds: float) -> None:
    if not ready.done():
        log.warning("no pod is released: the agent had not got to know them all yet")
        return
    log.info("taking every pod out of the mesh", seconds=seconds)
    for row in await ready.result().release(max(seconds, 0.0)):
        log.warning("not released", pod=str(row.pod), uid=row.uid, state=row.detail)


def _uninstall_detector(settings: Settings, api: ApiServer | None) -> UninstallDetector | None:
    if api is None or not settings.pod_name:
        return None
    return UninstallDetector(
        api,
        pod_namespace=settings.pod_namespace,
        pod_name=settings.pod_name,
        node_name=settings.node_name,
    )


async def _serve(
    settings: Settings,
    api: ApiServer | None,
    detector: UninstallDetector | None,
    ready: asyncio.Future[Reconciler[Netns]],
) -> None:
    log.info("starting", node=settings.node_name, pods_from=settings.pod_manifests or "the cluster")
    tasks = asyncio.TaskGroup()
    missing = [_LISTS, _LOOKS]
    async with contextlib.AsyncExitStack() as stack:
        node = await stack.enter_async_context(assembled(settings, api, tasks))
        table, probes = node.reconciler.table, node.probes
        chain = installer(settings)
        if chain is not None:
            missing.append(_CHAIN)
        listener = await stack.enter_async_context(_sockets(settings, table, missing))
        await node.start_probes()
        # Before the first list: a plugin that waits here need not wait for a retry.
        await stack.enter_async_context(
            plugin_server(
                settings,
                table=table,
                policy=node.policy,
                redirector=node.redirector,
                origin=node.origin,
                missing=lambda: missing,
            )
        )
        await stack.enter_async_context(tasks)
        tasks.create_task(probes.keep(), name="host probes kept")
        node.follow()
        if detector is not None:
            tasks.create_task(detector.follow(), name="own DaemonSet")
        if chain is not None:
            tasks.create_task(chain.run(), name="CNI installer")
            tasks.create_task(_installed(chain, missing), name="CNI plugin installed")
        await table.until_synced()
        missing.remove(_LISTS)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FIRST_LOOK_TIMEOUT):
                await node.reconciler.until_all_attempted()
        await _prune(probes, table)
        missing.remove(_LOOKS)
        ready.set_result(node.reconciler)
        log.info("ready", pods=len(table), zds=settings.ztunnel_uds_address)
        # Not before: modules that are loaded at the start hold up nobody.
        stack.enter_context(watching_loop())
        if api is not None and settings.remove_startup_taint:
            tasks.create_task(_untaint(settings, api, chain), name="start-up taint")
        await ZdsServer(node.ztunnels, peer_uids=settings.zds_peer_uids).serve(listener)


@contextlib.asynccontextmanager
async def _sockets(
    settings: Settings, table: Table[Netns], missing: list[str]
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


async def _prune(probes: TakingOver, table: Table[Netns]) -> None:
    enrolled = [row.pod for row in table if row.decision.wanted is not Wanted.NO and not row.gone]
    try:
        await probes.prune(enrolled)
    except RetryError as error:
        # What is in the set too long does no harm that would justify not to start.
        log.warning("host probe set not pruned", reason=str(error))


def _readiness_address(settings: Settings) -> str:
    if settings.readiness_address is None:
        return _KUBELET_ASKS if settings.pod_manifests is None else ""
    return settings.readiness_address


async def _installed(chain: Installer, missing: list[str]) -> None:
    await chain.installed.wait()
    missing.remove(_CHAIN)


async def _untaint(settings: Settings, api: ApiServer, chain: Installer | None) -> None:
    if chain is not None:
        await chain.installed.wait()
    await remove_taint(api, settings.node_name, settings.startup_taint)
