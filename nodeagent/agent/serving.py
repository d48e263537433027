"""A running agent: its parts are started in order, and run together until one of them fails.

What others wait for comes first: the sockets of ztunnel, kubelet, ``nodeagent status`` and
the CNI plugin answer before the agent has heard of any pod. ztunnel itself is answered
last, when the steps for every pod have run once, because what it is told first has to be
complete. What is not done until then is a token of the agent's readiness.
"""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import structlog

from nodeagent.admin.server import serve_admin, serve_health
from nodeagent.agent.alone import until_alone
from nodeagent.agent.answers import answers
from nodeagent.agent.assembly import Assembly, assembled
from nodeagent.agent.cni_wiring import installer, plugin_server
from nodeagent.agent.figures import show_figures
from nodeagent.agent.idle import serve_idle
from nodeagent.agent.readiness import Readiness, Token
from nodeagent.cluster.api import ApiServer
from nodeagent.cluster.taint import remove_taint
from nodeagent.cluster.uninstall_detector import UninstallDetector
from nodeagent.cni.install.installer import Installer
from nodeagent.config import Settings
from nodeagent.linux.unix_sockets import listening
from nodeagent.loop_watch import watching_loop
from nodeagent.mesh.eligibility import Wanted
from nodeagent.mesh.errors import RetryError
from nodeagent.mesh.reconciler import Reconciler
from nodeagent.metrics.counting import Metrics
from nodeagent.metrics.server import serving_metrics
from nodeagent.netns.netns import Netns
from nodeagent.zds.server import ZdsServer

log = structlog.get_logger()

_DEFAULT_READINESS_ADDRESS = ":8000"
"""Where Istio's agent answers kubelet's probes."""
_DEFAULT_MONITORING_PORT = 15014
"""Where Istio's agent shows its metrics."""
_FIRST_ATTEMPTS_TIMEOUT = 10.0
"""Seconds. Then ztunnel is served although some pods were not attempted yet: ztunnel is told
to keep what it has for them."""


async def serve(
    settings: Settings,
    api: ApiServer | None,
    detector: UninstallDetector | None,
    ready: asyncio.Future[Reconciler[Netns]],
    metrics: Metrics,
) -> None:
    """Run the agent until cancelled. `ready` is given the reconciler once every pod is known.

    Raises ``OSError``, ``RetryError`` and ``NoBinaryError`` where a part cannot start.
    """
    log.info("starting", node=settings.node_name, pods_from=settings.pod_manifests or "the cluster")
    if not settings.ambient_enabled:
        await serve_idle(settings, _readiness_address(settings), _monitoring_port(settings))
        return
    readiness = Readiness()
    listed = readiness.token("the first list of pods")
    attempted = readiness.token("a first look at each pod")
    tasks = asyncio.TaskGroup()
    async with contextlib.AsyncExitStack() as stack:
        # First: kubelet does not end an agent that waits for another one.
        if address := _readiness_address(settings):
            await stack.enter_async_context(serve_health(address, missing=readiness.missing))
        await until_alone(settings)
        node = await stack.enter_async_context(assembled(settings, api, tasks, metrics))
        table = node.reconciler.table
        chain = installer(settings, metrics.installation)
        chained = readiness.token("the plugin in the CNI chain") if chain is not None else None
        listener = await stack.enter_async_context(_sockets(settings, node, readiness))
        show_figures(metrics, node, installed=lambda: chain is not None and chain.in_place)
        await stack.enter_async_context(serving_metrics(_monitoring_port(settings), metrics))
        await node.start_probes()
        # Before the first list: a plugin that waits here need not wait for a retry.
        await stack.enter_async_context(
            plugin_server(
                settings,
                table=table,
                policy=node.policy,
                redirector=node.redirector,
                origin=node.origin,
                missing=readiness.missing,
                on_answer=metrics.plugin_request,
                observer=metrics,
            )
        )
        await stack.enter_async_context(tasks)
        tasks.create_task(node.probes.keep_repaired(), name="host probes kept")
        node.follow(metrics.pod_event)
        if detector is not None:
            tasks.create_task(detector.follow(), name="own DaemonSet")
        if chain is not None and chained is not None:
            tasks.create_task(chain.run(), name="CNI installer")
            tasks.create_task(_until_installed(chain, chained), name="CNI plugin installed")
        await table.until_synced()
        listed.done()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FIRST_ATTEMPTS_TIMEOUT):
                await node.reconciler.until_all_attempted()
        await _prune_probes(node)
        attempted.done()
        ready.set_result(node.reconciler)
        log.info("ready", pods=len(table), zds=settings.ztunnel_uds_address)
        # Not before: the import of modules at the start holds up the loop, and harms nobody.
        stack.enter_context(watching_loop())
        if api is not None and settings.remove_startup_taint:
            tasks.create_task(_untaint(settings, api, chain), name="start-up taint")
        ztunnels = ZdsServer(node.ztunnels, peer_uids=settings.zds_peer_uids, observer=metrics)
        await ztunnels.serve(listener)


@contextlib.asynccontextmanager
async def _sockets(
    settings: Settings, node: Assembly, readiness: Readiness
) -> AsyncIterator[socket.socket]:
    """Answer ``nodeagent status``, and yield ztunnel's listener. Raises ``OSError``."""

    def workloads() -> list[dict[str, object]]:
        return [workload.describe() for workload in node.reconciler.table]

    async with contextlib.AsyncExitStack() as stack:
        # A ztunnel that connects early waits in the backlog, for a shorter time than its own
        # back-off would take.
        listener = stack.enter_context(
            listening(
                settings.ztunnel_uds_address, socket.SOCK_SEQPACKET, setting="ZTUNNEL_UDS_ADDRESS"
            )
        )
        await stack.enter_async_context(
            serve_admin(
                settings.admin_socket,
                workloads=workloads,
                missing=readiness.missing,
                answers=answers(node, readiness.missing),
            )
        )
        yield listener


def _readiness_address(settings: Settings) -> str:
    if settings.readiness_address is None:
        return _DEFAULT_READINESS_ADDRESS if settings.pod_manifests is None else ""
    return settings.readiness_address


def _monitoring_port(settings: Settings) -> int:
    if settings.monitoring_port is None:
        return _DEFAULT_MONITORING_PORT if settings.pod_manifests is None else 0
    return settings.monitoring_port


async def _prune_probes(node: Assembly) -> None:
    """Take addresses of pods that have gone meanwhile out of the host's set."""
    pods = [
        workload.pod
        for workload in node.reconciler.table
        if workload.decision.wanted is not Wanted.NO and not workload.gone
    ]
    try:
        await node.probes.prune(pods)
    except RetryError as error:
        # An address that is in the set for too long does less harm than an agent that is not
        # ready.
        log.warning("host probe set not pruned", reason=str(error))


async def _until_installed(chain: Installer, chained: Token) -> None:
    await chain.installed.wait()
    chained.done()


async def _untaint(settings: Settings, api: ApiServer, chain: Installer | None) -> None:
    if chain is not None:
        await chain.installed.wait()
    await remove_taint(api, settings.node_name, settings.startup_taint)
