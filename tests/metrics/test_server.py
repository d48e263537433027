"""`/metrics` over HTTP."""

import socket
import subprocess

import aiohttp
import pytest
import structlog.testing

from nodeagent.metrics.counting import Metrics
from nodeagent.metrics.server import serving_metrics


@pytest.fixture
def port() -> int:
    # The first test in a network namespace finds it down.
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number: int = free.getsockname()[1]
    return number


@pytest.mark.parametrize(
    ("accept", "answered", "end"),
    [("", "text/plain", ""), ("application/openmetrics-text", "application/openmetrics", "# EOF")],
)
async def test_both_formats(port: int, accept: str, answered: str, end: str) -> None:
    """Prometheus gets the format that it asks for."""
    url = f"http://127.0.0.1:{port}/metrics"
    async with (
        serving_metrics(port, Metrics()),
        aiohttp.ClientSession() as session,
        session.get(url, headers={"Accept": accept}) as response,
    ):
        text = await response.text()
        assert response.headers["Content-Type"].startswith(answered)
    assert "istio_build{" in text
    assert text.strip().endswith(end)


@pytest.mark.parametrize(
    "accept",
    [
        "application/openmetrics-text; version=abc",
        "application/openmetrics-text; version=1.a.0",
        "text/plain; version=1..0; escaping=allow-utf-8",
        "text/plain;version=1.0.0;escaping=allow-utf-8;q=x, ;;,=",
    ],
)
async def test_any_wish(port: int, accept: str) -> None:
    """A format that makes no sense, which any pod can ask for, is no failure of the agent's."""
    url = f"http://127.0.0.1:{port}/metrics"
    async with (
        serving_metrics(port, Metrics()),
        aiohttp.ClientSession() as session,
        session.get(url, headers={"Accept": accept}) as response,
    ):
        assert response.status == 200
        assert "istio_build{" in await response.text()


async def test_a_port_that_is_taken(port: int) -> None:
    """That costs one line and the metrics, not the agent."""
    with structlog.testing.capture_logs() as logs:
        async with serving_metrics(port, Metrics()), serving_metrics(port, Metrics()):
            pass
    [line] = logs
    assert (line["event"], line["log_level"]) == ("no metrics", "warning")
    assert "MONITORING_PORT" in line["reason"]


async def test_nowhere() -> None:
    """With 0 there is no socket."""
    with structlog.testing.capture_logs() as logs:
        async with serving_metrics(0, Metrics()):
            pass
    assert logs == []
