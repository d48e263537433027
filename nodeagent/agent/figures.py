"""Which figures are read from which part of the running agent when Prometheus asks."""

from collections.abc import Callable

from nodeagent.agent.assembly import Assembly
from nodeagent.loop_watch import turns
from nodeagent.metrics import definitions as the
from nodeagent.metrics.counting import Metrics, Values
from nodeagent.metrics.pods import show_pods


def show_figures(metrics: Metrics, node: Assembly, *, installed: Callable[[], bool]) -> None:
    """Have `metrics` tell of `node`, and whether the CNI plugin is `installed`."""
    metrics.show_turns(turns)
    show_pods(metrics, node.reconciler.table)
    metrics.read_at_scrape(the.ISTIO_INSTALL_READY, _one(installed))
    metrics.read_at_scrape(the.ISTIO_ZTUNNEL, _one(lambda: node.ztunnels.connected))
    metrics.read_at_scrape(the.ZTUNNELS, _one(lambda: node.ztunnels.connections))
    metrics.read_at_scrape(the.PROBES_WANTED, _one(lambda: node.probes.wanted))
    metrics.read_at_scrape(the.NETNS_JOBS, _one(lambda: node.threads.jobs))
    if (waiting := node.origin.waiting) is not None:
        metrics.read_at_scrape(
            the.UNDELIVERED, lambda: {(what,): number for what, number in waiting().items()}
        )


def _one(read: Callable[[], float]) -> Callable[[], Values]:
    return lambda: {(): read()}
