"""What is told to an observer, as Prometheus gets it."""

from collections.abc import Mapping

from prometheus_client import generate_latest

from nodeagent import __version__
from nodeagent.metrics import definitions as the
from nodeagent.metrics.counting import Metrics
from nodeagent.observer import Phase, Reason, Way


def samples(metrics: Metrics) -> Mapping[str, float]:
    lines = generate_latest(metrics.registry).decode().splitlines()
    pairs = (line.rpartition(" ") for line in lines if not line.startswith("#"))
    return {name: float(value) for name, _, value in pairs}


def test_figures_of_istios_agent() -> None:
    """Each name and label is as in Istio's agent; what has not happened yet is 0."""
    metrics = Metrics()
    metrics.installation(success=True)
    metrics.installation(success=False)
    metrics.plugin_request(200)
    metrics.plugin_request(500)
    metrics.pod_event("add")
    metrics.read_at_scrape(the.ISTIO_INSTALL_READY, lambda: {(): True})
    metrics.read_at_scrape(the.ISTIO_ZTUNNEL, lambda: {(): False})
    assert (
        samples(metrics).items()
        >= {
            'istio_cni_installs_total{result="SUCCESS"}': 1,
            'istio_cni_installs_total{result="FAILURE"}': 1,
            'istio_cni_plugin_requests_total{response_code="200"}': 1,
            'istio_cni_plugin_requests_total{response_code="500"}': 1,
            'nodeagent_reconcile_events_total{type="add"}': 1,
            'nodeagent_reconcile_events_total{type="update"}': 0,
            'nodeagent_reconcile_events_total{type="delete"}': 0,
            "istio_cni_install_ready": 1,
            "ztunnel_connected": 0,
            f'istio_build{{component="cni",tag="{__version__}"}}': 1,
        }.items()
    )


def test_what_is_told_is_counted() -> None:
    """Every method of the observer moves its figure, and no other."""
    metrics = Metrics()
    before = samples(metrics)
    metrics.enrollment_reached(Phase.FOUND, Way.CNI, 0.02)
    metrics.enrolled(Way.CNI, 0.2)
    metrics.ran_unprotected(20)
    metrics.pod_repaired()
    metrics.host_repaired()
    metrics.warned(Reason.BROKEN)
    metrics.ztunnel_answered("add", "refused", 0.002)
    metrics.snapshot_sent(7, 0.02)
    metrics.host_checked(False)
    metrics.annotated(0.25)
    metrics.api_answered("patch", "200")
    metrics.listed("pods", 0.5)
    metrics.watch_heard("pods")
    metrics.watch_ended("pods", "silent")
    metrics.plugin_asked()
    metrics.plugin_asked()
    metrics.plugin_answered("ADD", "11", 3)
    metrics.netns_job_began(0.5)
    after = samples(metrics)
    moved = {
        name: number - before.get(name, 0)
        for name, number in after.items()
        if number != before.get(name) and not name.startswith("process_") and "_bucket{" not in name
    }
    assert 0 <= moved.pop('nodeagent_api_heard_age_seconds{resource="pods"}') < 300
    assert moved == {
        'nodeagent_enrollment_phase_duration_seconds_count{phase="found",way="cni"}': 1,
        'nodeagent_enrollment_phase_duration_seconds_sum{phase="found",way="cni"}': 0.02,
        'nodeagent_enrollment_duration_seconds_count{way="cni"}': 1,
        'nodeagent_enrollment_duration_seconds_sum{way="cni"}': 0.2,
        "nodeagent_unprotected_duration_seconds_count": 1,
        "nodeagent_unprotected_duration_seconds_sum": 20,
        'nodeagent_repairs_total{where="pod"}': 1,
        'nodeagent_repairs_total{where="host"}': 1,
        'nodeagent_pod_warnings_total{reason="RedirectionBroken"}': 1,
        'nodeagent_ztunnel_requests_total{request="add",result="refused"}': 1,
        'nodeagent_ztunnel_answer_duration_seconds_count{request="add"}': 1,
        'nodeagent_ztunnel_answer_duration_seconds_sum{request="add"}': 0.002,
        "nodeagent_ztunnel_snapshot_duration_seconds_count": 1,
        "nodeagent_ztunnel_snapshot_duration_seconds_sum": 0.02,
        "nodeagent_ztunnel_snapshot_workloads": 7,
        "nodeagent_host_probes_in_order": 0,
        "nodeagent_annotation_duration_seconds_count": 1,
        "nodeagent_annotation_duration_seconds_sum": 0.25,
        'nodeagent_api_requests_total{code="200",verb="patch"}': 1,
        'nodeagent_api_list_duration_seconds_count{resource="pods"}': 1,
        'nodeagent_api_list_duration_seconds_sum{resource="pods"}': 0.5,
        'nodeagent_api_watches_ended_total{cause="silent",resource="pods"}': 1,
        "nodeagent_plugin_calls_in_flight": 1,
        'nodeagent_plugin_calls_total{code="11",command="ADD"}': 1,
        'nodeagent_plugin_call_duration_seconds_count{command="ADD"}': 1,
        'nodeagent_plugin_call_duration_seconds_sum{command="ADD"}': 3,
        "nodeagent_netns_job_wait_duration_seconds_count": 1,
        "nodeagent_netns_job_wait_duration_seconds_sum": 0.5,
    }


def test_agents_have_figures_of_their_own() -> None:
    """Two in one process share nothing."""
    one, other = Metrics(), Metrics()
    one.pod_event("add")
    assert samples(other)['nodeagent_reconcile_events_total{type="add"}'] == 0
