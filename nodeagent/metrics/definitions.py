"""Every metric once: its name, what it counts, and its labels.

The names are those of Istio's agent, so that its dashboards and alerts go on working. A figure
that this agent has no source for is not here.
"""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, disable_created_metrics

from nodeagent import __version__

disable_created_metrics()  # type: ignore[no-untyped-call]


class Metrics:
    """The metrics of one agent. What they tell at first is 0, not nothing."""

    def __init__(self) -> None:
        """Make them in a registry of their own."""
        self.registry = CollectorRegistry()
        self._installs = Counter(
            "istio_cni_installs",
            "Installations of the CNI plugin on the node, by result (SUCCESS or FAILURE).",
            ["result"],
            registry=self.registry,
        )
        self._plugin_requests = Counter(
            "istio_cni_plugin_requests",
            "Requests of the CNI plugin, by the HTTP status of the agent's answer.",
            ["response_code"],
            registry=self.registry,
        )
        self._reconcile_events = Counter(
            "nodeagent_reconcile_events",
            "Events about pods of the node, by type (add, update or delete).",
            ["type"],
            registry=self.registry,
        )
        self._install_ready = Gauge(
            "istio_cni_install_ready",
            "1 while the CNI plugin and its configuration are in place.",
            registry=self.registry,
        )
        self._ztunnel_connected = Gauge(
            "ztunnel_connected",
            "1 while a ztunnel is connected.",
            registry=self.registry,
        )
        build = Gauge(
            "istio_build",
            "The agent's version, always 1.",
            ["component", "tag"],
            registry=self.registry,
        )
        build.labels(component="cni", tag=__version__).set(1)
        for result in ("SUCCESS", "FAILURE"):
            self._installs.labels(result=result)
        for kind in ("add", "update", "delete"):
            self._reconcile_events.labels(type=kind)

    def installation(self, success: bool) -> None:
        """Count an attempt to install the plugin."""
        self._installs.labels(result="SUCCESS" if success else "FAILURE").inc()

    def plugin_request(self, status: int) -> None:
        """Count a request of the plugin's that was answered with this HTTP status."""
        self._plugin_requests.labels(response_code=str(status)).inc()

    def pod_event(self, kind: str) -> None:
        """Count an event about a pod: ``add``, ``update`` or ``delete``."""
        self._reconcile_events.labels(type=kind).inc()

    def install_ready_is(self, installed: Callable[[], bool]) -> None:
        """Have the gauge ask `installed` whenever it is read."""
        self._install_ready.set_function(installed)

    def ztunnel_connected_is(self, connected: Callable[[], bool]) -> None:
        """Have the gauge ask `connected` whenever it is read."""
        self._ztunnel_connected.set_function(connected)
