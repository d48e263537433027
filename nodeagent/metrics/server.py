"""``/metrics``, for Prometheus, in its text format or as OpenMetrics."""

import contextlib
from collections.abc import AsyncIterator

import structlog
from aiohttp import web
from prometheus_client.exposition import choose_encoder

from nodeagent.http_listener import Bounds, application, serve_http
from nodeagent.linux.unix_sockets import listening_on_network
from nodeagent.metrics.counting import Metrics

log = structlog.get_logger()

_BOUNDS = Bounds(connections=64, seconds=10)
"""Prometheus asks twice a minute. Any pod can connect."""
_OPENMETRICS = "application/openmetrics-text"


@contextlib.asynccontextmanager
async def serving_metrics(port: int, metrics: Metrics) -> AsyncIterator[None]:
    """Serve `metrics` at `port` on every address while the context lasts; 0: nowhere.

    Where the port cannot be had, that is said, and the agent does its work without it.
    """

    async def get_metrics(request: web.Request) -> web.Response:
        # The library is not given the header itself: it raises where a version is no number.
        accepted = _OPENMETRICS in request.headers.get("Accept", "")
        encode, content_type = choose_encoder(_OPENMETRICS if accepted else "")
        return web.Response(body=encode(metrics.registry), headers={"Content-Type": content_type})

    app = application(_BOUNDS)
    app.router.add_get("/metrics", get_metrics)
    async with contextlib.AsyncExitStack() as stack:
        if port:
            try:
                listeners = stack.enter_context(
                    listening_on_network(f":{port}", setting="MONITORING_PORT")
                )
            except OSError as error:
                log.warning("no metrics", reason=error.strerror)
            else:
                await stack.enter_async_context(serve_http(listeners, app, _BOUNDS, name="metrics"))
        yield
