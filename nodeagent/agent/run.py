"""The life of an agent: from its start to the signal that ends it, and what follows then.

The parts of the agent run in one task, `serving.serve`. A first SIGTERM or SIGINT ends it.
Redirection stays in the pods, because the next agent goes on with it; only where the agent
is uninstalled is everything removed from the host, and, with RELEASE_PODS_ON_UNINSTALL,
every pod taken out of the mesh before. A second signal ends the agent at once.
"""

import asyncio
import contextlib
import signal

import structlog

from nodeagent.agent.assembly import cluster_of
from nodeagent.agent.serving import serve
from nodeagent.agent.uninstall import uninstall
from nodeagent.cluster.api import ApiServer
from nodeagent.cluster.uninstall_detector import UninstallDetector
from nodeagent.config import Settings
from nodeagent.linux import syscalls as kernel
from nodeagent.linux.fd_limit import raise_nofile_limit
from nodeagent.linux.thread_start import ThreadPool
from nodeagent.mesh.reconciler import Reconciler
from nodeagent.metrics.counting import Metrics
from nodeagent.netns.netns import Netns

log = structlog.get_logger()

_EXPECTED_DESCRIPTORS = 4096
"""Three for each pod, and more pods than any node runs."""
_STOP_TIME = 5.0
"""Seconds of the pod's grace that are left for the stop when the pods have been released."""


async def run(settings: Settings) -> int:
    """Run the agent until SIGTERM or SIGINT; returns the exit status.

    Raises ``OSError`` where a socket or a netns cannot be had, ``RetryError`` where the
    rules' backend cannot be chosen, ``NoClusterError`` and ``NoBinaryError``: each with a
    text for people.
    """
    kernel.share_malloc_arena()
    raise_nofile_limit(_EXPECTED_DESCRIPTORS)
    asyncio.get_running_loop().set_default_executor(ThreadPool())
    metrics = Metrics()
    async with cluster_of(settings, metrics) as api:
        detector = _uninstall_detector(settings, api)
        ready: asyncio.Future[Reconciler[Netns]] = asyncio.Future()
        serving = asyncio.create_task(serve(settings, api, detector, ready, metrics), name="agent")
        signaled = await _signaled(serving)
        if signaled and detector is not None and await detector.is_uninstall():
            if settings.release_pods_on_uninstall:
                # While ztunnel, the API server and the plugin are still served.
                await _release_pods(ready, serving, detector.grace - _STOP_TIME)
            await _ended(serving)
            for line in (await uninstall(settings)).lines:
                log.info("uninstalled", what=line)
        else:
            await _ended(serving)
            log.info("stopped; redirection stays in place")
    return 0


async def _signaled(serving: asyncio.Task[None]) -> bool:
    """Wait for a signal; False where `serving` has ended by itself. The next signal ends it."""
    first = asyncio.Event()

    def handle() -> None:
        if first.is_set():
            serving.cancel()
        first.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, handle)
    waiting = asyncio.create_task(first.wait(), name="signal")
    await asyncio.wait({serving, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    return first.is_set()


async def _ended(serving: asyncio.Task[None]) -> None:
    """Cancel `serving`, unless it has ended. Raises what it has raised."""
    serving.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await serving


async def _release_pods(
    ready: asyncio.Future[Reconciler[Netns]], serving: asyncio.Task[None], seconds: float
) -> None:
    """Take every pod out of the mesh, unless `serving`, which does the work, ends before."""
    if not ready.done():
        log.warning("no pod is released: the agent was not ready, and does not know them all")
        return
    log.info("taking every pod out of the mesh", seconds=seconds)
    releasing = asyncio.create_task(ready.result().release(max(seconds, 0.0)), name="release")
    await asyncio.wait({releasing, serving}, return_when=asyncio.FIRST_COMPLETED)
    if not releasing.done():
        releasing.cancel()
        log.warning("the release was cut short: pods may be left in the mesh")
        return
    for workload in releasing.result():
        log.warning("not released", pod=str(workload.pod), uid=workload.uid, state=workload.detail)


def _uninstall_detector(settings: Settings, api: ApiServer | None) -> UninstallDetector | None:
    if api is None or not settings.pod_name:
        return None
    return UninstallDetector(
        api,
        pod_namespace=settings.pod_namespace,
        pod_name=settings.pod_name,
        node_name=settings.node_name,
    )
