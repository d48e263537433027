"""The names under which dashboards for Istio look for the agent's figures."""

from prometheus_client import generate_latest

from nodeagent import __version__
from nodeagent.metrics.definitions import Metrics


def test_figures_are_those_of_istios_agent() -> None:
    """Each name and label is as in Istio's agent; what has not happened yet is 0."""
    metrics = Metrics()
    metrics.installation(success=True)
    metrics.installation(success=False)
    metrics.plugin_request(200)
    metrics.plugin_request(500)
    metrics.pod_event("add")
    metrics.install_ready_is(lambda: True)
    metrics.ztunnel_connected_is(lambda: False)
    text = generate_latest(metrics.registry).decode()
    assert {line for line in text.splitlines() if not line.startswith("#")} == {
        'istio_cni_installs_total{result="SUCCESS"} 1.0',
        'istio_cni_installs_total{result="FAILURE"} 1.0',
        'istio_cni_plugin_requests_total{response_code="200"} 1.0',
        'istio_cni_plugin_requests_total{response_code="500"} 1.0',
        'nodeagent_reconcile_events_total{type="add"} 1.0',
        'nodeagent_reconcile_events_total{type="update"} 0.0',
        'nodeagent_reconcile_events_total{type="delete"} 0.0',
        "istio_cni_install_ready 1.0",
        "ztunnel_connected 0.0",
        f'istio_build{{component="cni",tag="{__version__}"}} 1.0',
    }


def test_agents_have_figures_of_their_own() -> None:
    """Two in one process share nothing."""
    one, other = Metrics(), Metrics()
    one.pod_event("add")
    assert b'{type="add"} 0.0' in generate_latest(other.registry)
