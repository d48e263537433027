"""Reports on pods that go to the log only, where there is no API server to take them."""

import structlog

from nodeagent.mesh.annotation import Redirection
from nodeagent.mesh.pod import Pod, PodUID
from nodeagent.observer import NOBODY, Observer, Reason

log = structlog.get_logger()


class LogReporter:
    """Logs what is reported; see `mesh.dependencies.Reporter`."""

    def __init__(self, observer: Observer = NOBODY) -> None:
        """`observer` is told of each warning."""
        self._observer = observer

    def report(self, pod: Pod, redirection: Redirection | None) -> None:
        """Log what the annotation would be."""
        word = redirection.value if redirection else "none"
        log.info("redirection", pod=str(pod), uid=pod.uid, redirection=word)

    def delivered(self, uid: PodUID) -> bool:  # noqa: ARG002 - part of the protocol
        """True: the log has taken everything."""
        return True

    def contested(self, pod: Pod, times: int) -> None:
        """Log that something else keeps changing the pod's redirection."""
        self._observer.warned(Reason.CONTESTED)
        log.error(
            "something else keeps changing the pod's redirection",
            pod=str(pod),
            uid=pod.uid,
            repairs=times,
        )

    def unprotected(self, pod: Pod) -> None:
        """Log that the pod's traffic has gone past ztunnel until now."""
        self._observer.warned(Reason.ENROLLED_LATE)
        log.info("was running unprotected; redirected now", pod=str(pod), uid=pod.uid)

    def broken(self, pod: Pod, reason: str) -> None:
        """Log that the pod is annotated `enabled` and not served."""
        self._observer.warned(Reason.BROKEN)
        log.warning("annotated enabled, but not in order", pod=str(pod), uid=pod.uid, reason=reason)

    def netns_conflict(self, pod: Pod, netns: str, holder: Pod) -> None:
        """Log that the pod was refused the netns of `holder`."""
        self._observer.warned(Reason.NETNS_CONFLICT)
        log.warning(
            "security: refused a network namespace that is another pod's",
            pod=str(pod),
            uid=pod.uid,
            netns=netns,
            holder=str(holder),
            holder_uid=holder.uid,
        )

    def failed(self, pod: Pod, reason: str) -> None:  # noqa: ARG002 - part of the protocol
        """Only tell the observer: the heart has logged the reason."""
        self._observer.warned(Reason.FAILED)

    def forget(self, uid: PodUID) -> None:
        """Nothing: everything was logged at once."""
