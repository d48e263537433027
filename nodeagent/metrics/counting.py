"""The figures of one agent: those that are counted while things happen, and those that are read.

What is counted comes from an `Observer`'s methods. What is the state of something is read
when Prometheus asks, from a function that `Metrics.read_at_scrape` is given: it must not wait.
"""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from nodeagent import __version__
from nodeagent.loop_watch import Turns
from nodeagent.metrics import definitions as the
from nodeagent.metrics.definitions import Definition
from nodeagent.observer import Observer, Phase, Reason, Way

disable_created_metrics()  # type: ignore[no-untyped-call]

Values = Mapping[tuple[str, ...], float]
"""A figure for each combination of its labels' values; ``()`` where it has no labels."""


class Metrics(Observer):
    """The metrics of one agent. What is counted begins with 0, not with nothing."""

    def __init__(self) -> None:
        """Make them in a registry of their own."""
        self.registry = CollectorRegistry()
        self._state = _State()
        self.registry.register(self._state)
        ProcessCollector(registry=self.registry)
        self._enrollment = self._histogram(the.ENROLLMENT)
        self._enrollment_phase = self._histogram(the.ENROLLMENT_PHASE)
        self._unprotected = self._histogram(the.UNPROTECTED)
        self._repairs = self._counter(the.REPAIRS)
        self._warnings = self._counter(the.WARNINGS)
        self._ztunnel_requests = self._counter(the.ZTUNNEL_REQUESTS)
        self._ztunnel_answer = self._histogram(the.ZTUNNEL_ANSWER)
        self._snapshot = self._histogram(the.SNAPSHOT)
        self._snapshot_size = self._gauge(the.SNAPSHOT_SIZE)
        self._plugin_calls = self._counter(the.PLUGIN_CALLS)
        self._plugin_duration = self._histogram(the.PLUGIN_DURATION)
        self._plugin_in_flight = self._gauge(the.PLUGIN_IN_FLIGHT)
        self._api_requests = self._counter(the.API_REQUESTS)
        self._api_list = self._histogram(the.API_LIST)
        self._api_watches = self._counter(the.API_WATCHES)
        self._heard: dict[str, float] = {}
        """When something was heard of each resource last; ``time.monotonic``."""
        self.read_at_scrape(the.API_HEARD_AGE, self._heard_ages)
        self._annotation = self._histogram(the.ANNOTATION)
        self._netns_wait = self._histogram(the.NETNS_WAIT)
        self._host_in_order: dict[tuple[str, ...], float] = {}
        self.read_at_scrape(the.PROBES_IN_ORDER, lambda: self._host_in_order)
        self._installs = self._counter(the.ISTIO_INSTALLS)
        self._plugin_requests = self._counter(the.ISTIO_PLUGIN_REQUESTS)
        self._reconcile_events = self._counter(the.ISTIO_EVENTS)
        self._gauge(the.BUILD).labels(version=__version__).set(1)
        self._gauge(the.ISTIO_BUILD).labels(component="cni", tag=__version__).set(1)

    def show_turns(self, read: Callable[[], Turns]) -> None:
        """Have `read` say how long the event loop's turns took."""
        self.registry.register(_TurnsCollector(read))

    def read_at_scrape(self, definition: Definition, read: Callable[[], Values]) -> None:
        """Have `read` say the figures of a gauge whenever Prometheus asks."""
        self._state.readers.append((definition, read))

    def installation(self, success: bool) -> None:
        """Count an attempt to install the plugin."""
        self._installs.labels(result="SUCCESS" if success else "FAILURE").inc()

    def plugin_request(self, status: int) -> None:
        """Count a request of the plugin's that was answered with this HTTP status."""
        self._plugin_requests.labels(response_code=str(status)).inc()

    def pod_event(self, kind: str) -> None:
        """Count an event about a pod: ``add``, ``update`` or ``delete``."""
        self._reconcile_events.labels(type=kind).inc()

    def enrollment_reached(self, phase: Phase, way: Way, seconds: float) -> None:
        """See `Observer`."""
        self._enrollment_phase.labels(phase=phase.value, way=way.value).observe(seconds)

    def enrolled(self, way: Way, seconds: float) -> None:
        """See `Observer`."""
        self._enrollment.labels(way=way.value).observe(seconds)

    def ran_unprotected(self, seconds: float) -> None:
        """See `Observer`."""
        self._unprotected.observe(seconds)

    def pod_repaired(self) -> None:
        """See `Observer`."""
        self._repairs.labels(where="pod").inc()

    def host_repaired(self) -> None:
        """See `Observer`."""
        self._repairs.labels(where="host").inc()

    def warned(self, reason: Reason) -> None:
        """See `Observer`."""
        self._warnings.labels(reason=reason.value).inc()

    def ztunnel_answered(self, request: str, result: str, seconds: float) -> None:
        """See `Observer`."""
        self._ztunnel_requests.labels(request=request, result=result).inc()
        self._ztunnel_answer.labels(request=request).observe(seconds)

    def snapshot_sent(self, workloads: int, seconds: float) -> None:
        """See `Observer`."""
        self._snapshot.observe(seconds)
        self._snapshot_size.set(workloads)

    def host_checked(self, in_order: bool) -> None:
        """See `Observer`."""
        self._host_in_order[()] = in_order

    def annotated(self, seconds: float) -> None:
        """See `Observer`."""
        self._annotation.observe(seconds)

    def api_answered(self, verb: str, code: str) -> None:
        """See `Observer`."""
        self._api_requests.labels(verb=verb, code=code).inc()

    def listed(self, resource: str, seconds: float) -> None:
        """See `Observer`."""
        self._api_list.labels(resource=resource).observe(seconds)

    def watch_heard(self, resource: str) -> None:
        """See `Observer`."""
        self._heard[resource] = time.monotonic()

    def watch_ended(self, resource: str, cause: str) -> None:
        """See `Observer`."""
        self._api_watches.labels(resource=resource, cause=cause).inc()

    def plugin_asked(self) -> None:
        """See `Observer`."""
        self._plugin_in_flight.inc()

    def plugin_answered(self, command: str, code: str, seconds: float) -> None:
        """See `Observer`."""
        self._plugin_in_flight.dec()
        self._plugin_calls.labels(command=command, code=code).inc()
        self._plugin_duration.labels(command=command).observe(seconds)

    def netns_job_began(self, waited: float) -> None:
        """See `Observer`."""
        self._netns_wait.observe(waited)

    def _heard_ages(self) -> Values:
        now = time.monotonic()
        return {(resource,): now - heard for resource, heard in self._heard.items()}

    def _counter(self, definition: Definition) -> Counter:
        made = Counter(
            definition.name, definition.text, [*definition.labels], registry=self.registry
        )
        for values in _combinations(definition):
            made.labels(*values)
        return made

    def _histogram(self, definition: Definition) -> Histogram:
        made = Histogram(
            definition.name,
            definition.text,
            [*definition.labels],
            buckets=definition.buckets,
            registry=self.registry,
        )
        for values in _combinations(definition):
            made.labels(*values)
        return made

    def _gauge(self, definition: Definition) -> Gauge:
        return Gauge(definition.name, definition.text, [*definition.labels], registry=self.registry)


class _State(Collector):
    """What is read when Prometheus asks."""

    def __init__(self) -> None:
        self.readers: list[tuple[Definition, Callable[[], Values]]] = []

    def collect(self) -> Iterator[GaugeMetricFamily]:
        for definition, read in self.readers:
            family = GaugeMetricFamily(
                definition.name, definition.text, labels=[*definition.labels]
            )
            for values, number in read().items():
                family.add_metric(values, number)
            yield family


class _TurnsCollector(Collector):
    """The event loop counts by itself, as each of its turns would be too dear to tell."""

    def __init__(self, read: Callable[[], Turns]) -> None:
        self._read = read

    def collect(self) -> Iterator[HistogramMetricFamily]:
        turns = self._read()
        bounds = [*map(floatToGoString, the.LOOP_TURN.buckets), "+Inf"]
        counts = itertools.accumulate(turns.counts)
        yield HistogramMetricFamily(
            the.LOOP_TURN.name,
            the.LOOP_TURN.text,
            buckets=list(zip(bounds, counts, strict=True)),
            sum_value=turns.seconds,
        )


def _combinations(definition: Definition) -> Iterable[tuple[str, ...]]:
    """Every combination of the labels' values; none where one of the lists is not closed."""
    if not definition.labels:
        return ()
    return itertools.product(*definition.labels.values())
