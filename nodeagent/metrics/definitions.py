"""Every metric once: its name, what it says, its labels. docs/metrics.md is made from this.

Those of Istio's agent have its names, so that its dashboards and alerts go on working. A
figure that this agent has no source for is not here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from nodeagent.loop_watch import TURN_BUCKETS
from nodeagent.mesh.progress import State
from nodeagent.observer import Phase, Reason, Way


class Kind(StrEnum):
    """Prometheus' kinds of metrics."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Definition:
    """One metric."""

    name: str
    """As Prometheus shows it: a counter's ends in ``_total``."""
    kind: Kind
    text: str
    """What it says, in one sentence."""
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False)
    """The values of each label; empty where they are no closed list (an HTTP status, say)."""
    buckets: tuple[float, ...] = ()
    """The upper bounds of a histogram's buckets, in seconds."""


_STATES = tuple(state.value for state in State)
_WAYS = tuple(way.value for way in Way)
_PHASES = tuple(phase.value for phase in Phase)
_REASONS = tuple(reason.value for reason in Reason)
_COMMANDS = ("ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION", "unknown")
_REQUESTS = ("add", "keep", "del", "snapshot_sent")
_RESULTS = ("accepted", "refused", "unanswered")

_SHORT = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_LONG = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_LONGEST = (1, 5, 10, 30, 60, 300, 900, 3600)

# Pods

PODS = Definition("nodeagent_pods", Kind.GAUGE, "Pods of the node, by state.", {"state": _STATES})
UNREDIRECTED = Definition(
    "nodeagent_unredirected_pods",
    Kind.GAUGE,
    "Pods that should be redirected and are not known to be: never were, or cannot be repaired.",
)
UNREDIRECTED_AGE = Definition(
    "nodeagent_unredirected_oldest_age_seconds",
    Kind.GAUGE,
    "For how long that is so of the pod of which it is so longest; 0 where there is none.",
)
VERIFIED_AGE = Definition(
    "nodeagent_verified_oldest_age_seconds",
    Kind.GAUGE,
    "How long ago the redirection was verified in the pod where that is longest ago.",
)
CONTESTED = Definition(
    "nodeagent_contested_pods",
    Kind.GAUGE,
    "Pods whose redirection this agent has had to repair five times or more.",
)
ENROLLMENT = Definition(
    "nodeagent_enrollment_duration_seconds",
    Kind.HISTOGRAM,
    "From the news of a pod with an address until the pod is enrolled and served, by way in.",
    {"way": _WAYS},
    _LONG,
)
ENROLLMENT_PHASE = Definition(
    "nodeagent_enrollment_phase_duration_seconds",
    Kind.HISTOGRAM,
    "From the same news until the pod's network namespace is found, the pod is redirected, and "
    "accepted by ztunnel.",
    {"phase": _PHASES, "way": _WAYS},
    _LONG,
)
UNPROTECTED = Definition(
    "nodeagent_unprotected_duration_seconds",
    Kind.HISTOGRAM,
    "For how long a running pod was known to this agent, and not redirected; one observation for "
    "each pod that was enrolled late.",
    buckets=_LONGEST,
)
REPAIRS = Definition(
    "nodeagent_repairs_total",
    Kind.COUNTER,
    "Repairs of what something else had changed: in a pod, or of the host's rules for probes.",
    {"where": ("pod", "host")},
)
WARNINGS = Definition(
    "nodeagent_pod_warnings_total",
    Kind.COUNTER,
    "Warnings about pods, by the reason that the pod's Kubernetes event has.",
    {"reason": _REASONS},
)

# ztunnel

ZTUNNELS = Definition(
    "nodeagent_ztunnel_connections",
    Kind.GAUGE,
    "ztunnels that are connected; two for a while during an update.",
)
ZTUNNEL_REQUESTS = Definition(
    "nodeagent_ztunnel_requests_total",
    Kind.COUNTER,
    "Requests to ztunnel, by kind and by what came of them.",
    {"request": _REQUESTS, "result": _RESULTS},
)
ZTUNNEL_ANSWER = Definition(
    "nodeagent_ztunnel_answer_duration_seconds",
    Kind.HISTOGRAM,
    "From a request to ztunnel's answer, or to the end of waiting for one.",
    {"request": _REQUESTS},
    _SHORT,
)
SNAPSHOT = Definition(
    "nodeagent_ztunnel_snapshot_duration_seconds",
    Kind.HISTOGRAM,
    "From a ztunnel's hello until the ztunnel has been told of every pod.",
    buckets=_LONG,
)
SNAPSHOT_SIZE = Definition(
    "nodeagent_ztunnel_snapshot_workloads",
    Kind.GAUGE,
    "Pods that the ztunnel which connected last was told of at first.",
)

# The CNI plugin

PLUGIN_CALLS = Definition(
    "nodeagent_plugin_calls_total",
    Kind.COUNTER,
    "Calls of the CNI plugin by command and error code: 0 where it succeeds, those of the CNI "
    "specification, 100 for a CHECK that finds a difference; the code is counted, too, where the "
    "answer hides it (DEL, STATUS).",
    {"command": _COMMANDS, "code": ()},
)
PLUGIN_DURATION = Definition(
    "nodeagent_plugin_call_duration_seconds",
    Kind.HISTOGRAM,
    "From a call of the CNI plugin to its answer; an ADD includes the pod's enrollment.",
    {"command": _COMMANDS},
    _LONG,
)
PLUGIN_IN_FLIGHT = Definition(
    "nodeagent_plugin_calls_in_flight",
    Kind.GAUGE,
    "Calls of the CNI plugin that wait for an answer.",
)

# The API server

API_REQUESTS = Definition(
    "nodeagent_api_requests_total",
    Kind.COUNTER,
    "Requests to the API server by Kubernetes' verb and HTTP status; none: there was no answer.",
    {"verb": ("get", "list", "watch", "patch", "create"), "code": ()},
)
API_LIST = Definition(
    "nodeagent_api_list_duration_seconds",
    Kind.HISTOGRAM,
    "How long it took to list all objects of a resource.",
    {"resource": ()},
    _LONG,
)
API_HEARD_AGE = Definition(
    "nodeagent_api_heard_age_seconds",
    Kind.GAUGE,
    "How long ago the API server sent something about the resource. Up to 150 is ordinary where "
    "nothing happens: then the watch is begun anew.",
    {"resource": ()},
)
API_WATCHES = Definition(
    "nodeagent_api_watches_ended_total",
    Kind.COUNTER,
    "Watches that have ended: by the server in good order (ended), for too long a silence, because "
    "the version to go on from was too old (expired), with a line that is no event (garbled), or "
    "with another error (failed).",
    {"resource": (), "cause": ("ended", "silent", "expired", "garbled", "failed")},
)
ANNOTATION = Definition(
    "nodeagent_annotation_duration_seconds",
    Kind.HISTOGRAM,
    "From the decision on a pod's annotation until the API server has taken it.",
    buckets=_LONG,
)
UNDELIVERED = Definition(
    "nodeagent_undelivered",
    Kind.GAUGE,
    "What the API server has not taken yet: the annotations of so many pods, and events.",
    {"what": ("annotations", "events")},
)

# The host

PROBES_WANTED = Definition(
    "nodeagent_host_probe_addresses",
    Kind.GAUGE,
    "Addresses of pods that should be in the host's sets for probes.",
)
PROBES_IN_ORDER = Definition(
    "nodeagent_host_probes_in_order",
    Kind.GAUGE,
    "1 where the last look at the host's rules and sets for probes found or made them right, else "
    "0; absent before the first.",
)
NETNS_JOBS = Definition(
    "nodeagent_netns_jobs",
    Kind.GAUGE,
    "Jobs that run in pods' network namespaces, each in a thread.",
)
NETNS_WAIT = Definition(
    "nodeagent_netns_job_wait_duration_seconds",
    Kind.HISTOGRAM,
    "For how long a job waited until it could begin in a pod's network namespace.",
    buckets=_SHORT,
)

# The agent

LOOP_TURN = Definition(
    "nodeagent_event_loop_turn_duration_seconds",
    Kind.HISTOGRAM,
    "How long the event loop was at work between two waits: for so long everything else waited.",
    buckets=TURN_BUCKETS,
)
BUILD = Definition(
    "nodeagent_build_info", Kind.GAUGE, "The agent's version, always 1.", {"version": ()}
)

# As Istio's agent has them

ISTIO_INSTALLS = Definition(
    "istio_cni_installs_total",
    Kind.COUNTER,
    "Installations of the CNI plugin on the node, by result.",
    {"result": ("SUCCESS", "FAILURE")},
)
ISTIO_INSTALL_READY = Definition(
    "istio_cni_install_ready",
    Kind.GAUGE,
    "1 while the CNI plugin and its configuration are in place.",
)
ISTIO_PLUGIN_REQUESTS = Definition(
    "istio_cni_plugin_requests_total",
    Kind.COUNTER,
    "Requests of the CNI plugin, by the HTTP status of the agent's answer.",
    {"response_code": ()},
)
ISTIO_EVENTS = Definition(
    "nodeagent_reconcile_events_total",
    Kind.COUNTER,
    "Events about pods of the node, by type.",
    {"type": ("add", "update", "delete")},
)
ISTIO_ZTUNNEL = Definition("ztunnel_connected", Kind.GAUGE, "1 while a ztunnel is connected.")
ISTIO_BUILD = Definition(
    "istio_build", Kind.GAUGE, "The agent's version, always 1.", {"component": (), "tag": ()}
)

SECTIONS: Mapping[str, tuple[Definition, ...]] = {
    "Pods": (
        PODS,
        UNREDIRECTED,
        UNREDIRECTED_AGE,
        VERIFIED_AGE,
        CONTESTED,
        ENROLLMENT,
        ENROLLMENT_PHASE,
        UNPROTECTED,
        REPAIRS,
        WARNINGS,
    ),
    "ztunnel": (ZTUNNELS, ZTUNNEL_REQUESTS, ZTUNNEL_ANSWER, SNAPSHOT, SNAPSHOT_SIZE),
    "The CNI plugin": (PLUGIN_CALLS, PLUGIN_DURATION, PLUGIN_IN_FLIGHT),
    "The API server": (
        API_REQUESTS,
        API_LIST,
        API_HEARD_AGE,
        API_WATCHES,
        ANNOTATION,
        UNDELIVERED,
    ),
    "The host": (PROBES_WANTED, PROBES_IN_ORDER, NETNS_JOBS, NETNS_WAIT),
    "The agent": (LOOP_TURN, BUILD),
    "As Istio's agent has them": (
        ISTIO_INSTALLS,
        ISTIO_INSTALL_READY,
        ISTIO_PLUGIN_REQUESTS,
        ISTIO_EVENTS,
        ISTIO_ZTUNNEL,
        ISTIO_BUILD,
    ),
}
"""All of them, in the order of docs/metrics.md."""
