"""What Prometheus gets from a whole agent, with the real kernel and a strict ztunnel."""

import socket
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from nodeagent import config
from tests.agent.processes import Node
from tests.agent.ztunnels import reconnected
from tests.eventually import eventually
from tests.lab.lab import Lab
from tests.zds.model import ModelZtunnel

ZTUNNEL_ADD = 'nodeagent_ztunnel_requests_total{request="add",result="accepted"}'
WATCH_IN = 'nodeagent_enrollment_phase_duration_seconds_count{phase="accepted",way="watch"}'
REPAIRS = 'nodeagent_repairs_total{where="pod"}'


@pytest.fixture
def url(lab: Lab, node: Node) -> str:  # noqa: ARG001 - the lab has `lo` up
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    node.flags["monitoring_port"] = str(port)
    node.settings = config.load(node.flags, {})
    return f"http://127.0.0.1:{port}/metrics"


def scraped(url: str) -> Mapping[str, float]:
    with urllib.request.urlopen(url, timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    pairs = (line.rpartition(" ") for line in lines if not line.startswith("#"))
    return {name: float(value) for name, _, value in pairs}


async def until(url: str, condition: Callable[[Mapping[str, float]], bool]) -> Mapping[str, float]:
    seen: list[Mapping[str, float]] = []

    def look() -> bool:
        seen.append(scraped(url))
        return condition(seen[-1])

    await eventually(look)
    return seen[-1]


async def test_figures_move_with_what_happens(
    lab: Lab, node: Node, ztunnels: list[ModelZtunnel], url: str
) -> None:
    """A pod comes in; its rules are lost and repaired; ztunnel goes; another pod comes."""
    web, late = lab.add_pod("web"), lab.add_pod("late")
    node.start()
    ztunnel = await reconnected(node, ztunnels)
    node.write(web)
    await node.until_state(web, "enrolled")
    figures = scraped(url)
    assert (figures["nodeagent_ztunnel_connections"], figures["ztunnel_connected"]) == (1, 1)
    assert (figures[ZTUNNEL_ADD], figures[WATCH_IN], figures[REPAIRS]) == (1, 1, 0)
    assert figures["nodeagent_unredirected_pods"] == 0
    turns = "nodeagent_event_loop_turn_duration_seconds"
    assert figures[f"{turns}_count"] == figures[f'{turns}_bucket{{le="+Inf"}}'] > 10
    assert 0 < figures[f"{turns}_sum"] < 300
    assert figures["process_resident_memory_bytes"] > 0
    web.shell("nft flush ruleset")
    await until(url, lambda figures: figures[REPAIRS] > 0)
    ztunnel.close()
    await until(url, lambda figures: figures["nodeagent_ztunnel_connections"] == 0)
    node.write(late)
    figures = await until(url, lambda figures: figures['nodeagent_pods{state="pending"}'] >= 1)
    assert figures["nodeagent_unredirected_pods"] == 0
    assert await node.stop() == 0


async def test_pod_that_is_not_redirected(
    lab: Lab, node: Node, ztunnels: list[ModelZtunnel], url: str, tmp_path: Path
) -> None:
    """The figure to page on: it says so while a wanted pod's netns is not there, and no longer."""
    web = lab.add_pod("web")
    late = tmp_path / "netns"
    node.write(replace(web, path=str(late)))
    node.start()
    await reconnected(node, ztunnels)
    figures = await until(url, lambda figures: figures["nodeagent_unredirected_pods"] == 1)
    age = "nodeagent_unredirected_oldest_age_seconds"
    await until(url, lambda later: later[age] > figures[age])
    late.symlink_to(web.path)
    figures = await until(url, lambda figures: figures["nodeagent_unredirected_pods"] == 0)
    assert figures[age] == 0
