"""Figures about the pods of the node, read from the table when Prometheus asks."""

import time
from collections import Counter
from collections.abc import Iterable

from nodeagent.mesh.enrollment import FIRST_CONTESTED
from nodeagent.mesh.held import N
from nodeagent.mesh.progress import State
from nodeagent.mesh.table import Table
from nodeagent.metrics import definitions as the
from nodeagent.metrics.counting import Metrics, Values


def show_pods(metrics: Metrics, table: Table[N]) -> None:
    """Have `metrics` tell of the pods in `table`."""

    def states() -> Values:
        counted = Counter(workload.state for workload in table)
        return {(state.value,): counted[state] for state in State}

    def unredirected() -> list[float]:
        since = (workload.unredirected_since for workload in table)
        return [each for each in since if each is not None]

    def verified() -> list[float]:
        held = (workload.held for workload in table)
        return [each.verified for each in held if each is not None and each.verified is not None]

    def contested() -> int:
        return sum(workload.progress.repairs >= FIRST_CONTESTED for workload in table)

    metrics.read_at_scrape(the.PODS, states)
    metrics.read_at_scrape(the.UNREDIRECTED, lambda: {(): len(unredirected())})
    metrics.read_at_scrape(
        the.UNREDIRECTED_AGE, lambda: {(): _oldest(unredirected(), time.monotonic())}
    )
    metrics.read_at_scrape(the.VERIFIED_AGE, lambda: {(): _oldest(verified(), time.time())})
    metrics.read_at_scrape(the.CONTESTED, lambda: {(): contested()})


def _oldest(times: Iterable[float], now: float) -> float:
    return max(0.0, now - min(times, default=now))
