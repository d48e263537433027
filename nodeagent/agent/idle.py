"""What the agent does where ambient mode is off: nothing to pods, nor in their way."""

import asyncio
import contextlib

import structlog

from nodeagent.admin.server import serve_admin, serve_health
from nodeagent.agent.cni_wiring import uninstall_plugin
from nodeagent.config import Settings
from nodeagent.metrics import definitions
from nodeagent.metrics.counting import Metrics
from nodeagent.metrics.server import serving_metrics

log = structlog.get_logger()


async def serve_idle(settings: Settings, health_address: str, monitoring_port: int) -> None:
    """Answer kubelet and ``nodeagent status`` without end; no ztunnel, and no pod is followed.

    The plugin of an agent that ran before leaves the CNI chain: pods would wait for an answer.
    An entry of Istio's own plugin stays. Raises ``OSError``.
    """
    log.warning("ambient mode is off (AMBIENT_ENABLED): no pod comes into the mesh")
    chain = await asyncio.to_thread(uninstall_plugin, settings)
    if chain.restored or chain.removed:
        log.info("left the cni chain", files=[*chain.restored, *chain.removed], kept=chain.kept)
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(
            serve_admin(
                settings.admin_socket,
                workloads=list,
                missing=list,
                answers={"history": _no_history, "verify": _no_pods},
            )
        )
        if health_address:
            await stack.enter_async_context(serve_health(health_address, missing=list))
        await stack.enter_async_context(serving_metrics(monitoring_port, _figures()))
        log.info("ready", pods=0)
        await asyncio.Event().wait()


def _figures() -> Metrics:
    metrics = Metrics()
    for figure in (definitions.ISTIO_INSTALL_READY, definitions.ISTIO_ZTUNNEL):
        metrics.read_at_scrape(figure, lambda: {(): 0.0})
    return metrics


async def _no_history(_uid: str) -> object:
    return []


async def _no_pods(_uid: str) -> object:
    return {"pods": [], "missing": []}
