"""What the parts of the agent tell of their work while it happens, so that it can be counted.

The parts know nothing of Prometheus: they call an `Observer`, which does nothing, and
`nodeagent.metrics` has one that counts. What can be read at any time (how many pods are in
which state, say) is not told here but read when Prometheus asks.
"""

from enum import Enum, StrEnum


class Way(Enum):
    """How the agent came to know that a pod is to be enrolled."""

    CNI = "cni"
    """The CNI plugin has handed the pod's sandbox over."""
    WATCH = "watch"
    """The pod source has told of a pod, or of a label, that is new."""
    START = "start"
    """The pod was there when the agent started."""


class Phase(Enum):
    """How far an enrollment has come."""

    FOUND = "found"
    """The pod's network namespace is open."""
    REDIRECTED = "redirected"
    """Rules and routes are in place."""
    ACCEPTED = "accepted"
    """A ztunnel has accepted the pod."""


class Reason(StrEnum):
    """Why the agent warns of a pod: the reasons of its Kubernetes events, and no others."""

    CONTESTED = "RedirectionContested"
    ENROLLED_LATE = "EnrolledLate"
    BROKEN = "RedirectionBroken"
    NETNS_CONFLICT = "NetnsConflict"
    FAILED = "EnrollmentFailed"


class Observer:
    """Is told what happens. Every method returns at once and raises nothing; times are seconds."""

    def enrollment_reached(self, phase: Phase, way: Way, seconds: float) -> None:
        """An enrollment has come so far, so long after its beginning."""

    def enrolled(self, way: Way, seconds: float) -> None:
        """A pod is enrolled and served, so long after the beginning of its enrollment."""

    def ran_unprotected(self, seconds: float) -> None:
        """A pod is redirected now that was known, wanted and running for so long before."""

    def pod_repaired(self) -> None:
        """Something else had changed a pod's redirection, and it was put right."""

    def host_repaired(self) -> None:
        """Something else had changed the host's rules or sets for probes; put right."""

    def warned(self, reason: Reason) -> None:
        """There was a reason to warn of a pod."""

    def ztunnel_answered(self, request: str, result: str, seconds: float) -> None:
        """A ztunnel has answered a ZDS request, or has not; see `nodeagent.zds.session`."""

    def snapshot_sent(self, workloads: int, seconds: float) -> None:
        """A ztunnel that has connected is up to date, so long after it said hello."""

    def host_checked(self, in_order: bool) -> None:
        """The host's rules and sets for probes were looked at, and are in order or not."""

    def annotated(self, seconds: float) -> None:
        """The API server has taken a pod's annotation, so long after it was decided."""

    def api_answered(self, verb: str, code: str) -> None:
        """The API server has answered with this HTTP status; ``none``: it has not answered."""

    def listed(self, resource: str, seconds: float) -> None:
        """All objects of a resource were listed."""

    def watch_heard(self, resource: str) -> None:
        """The API server has just sent something about a resource that is followed."""

    def watch_ended(self, resource: str, cause: str) -> None:
        """A watch has ended; see `nodeagent.cluster.listwatch` for the causes."""

    def plugin_asked(self) -> None:
        """A call of the CNI plugin has come; `plugin_answered` follows in any case."""

    def plugin_answered(self, command: str, code: str, seconds: float) -> None:
        """A call of the CNI plugin is over; see `nodeagent.cni.plugin` for the codes."""

    def netns_job_began(self, waited: float) -> None:
        """A job in a network namespace begins, after it has waited for its turn and a place."""


NOBODY = Observer()
"""Counts nothing."""
