"""Status for people who read the log: what a folder of manifests has instead of an API."""

import structlog

from nodeagent.mesh.annotation import Redirection
from nodeagent.mesh.pod import Pod, PodUID

log = structlog.get_logger()


class LogReporter:
    """Writes every change of a pod's redirection to the log; see `mesh.dependencies.Reporter`."""

    def report(self, pod: Pod, redirection: Redirection | None) -> None:
        """Log the pod's redirection as it is now."""
        word = redirection.value if redirection else "none"
        log.info("redirection", pod=str(pod), uid=pod.uid, redirection=word)

    def delivered(self, uid: PodUID) -> bool:  # noqa: ARG002 - as the other reporter has it
        """The log takes everything."""
        return True

    def contested(self, pod: Pod, times: int) -> None:
        """Log that somebody works against the agent."""
        log.error(
            "something else keeps changing the pod's redirection",
            pod=str(pod),
            uid=pod.uid,
            repairs=times,
        )

    def unprotected(self, pod: Pod) -> None:
        """Log that the pod's traffic has gone past ztunnel until now."""
        log.info("was running unprotected; redirected now", pod=str(pod), uid=pod.uid)

    def broken(self, pod: Pod, reason: str) -> None:
        """Log that the annotation promises what is not so."""
        log.warning("annotated enabled, but not in order", pod=str(pod), uid=pod.uid, reason=reason)

    def netns_conflict(self, pod: Pod, netns: str, holder: Pod) -> None:
        """Log that one of two pods seems to pose as the other."""
        log.warning(
            "security: refused a network namespace that is another pod's",
            pod=str(pod),
            uid=pod.uid,
            netns=netns,
            holder=str(holder),
            holder_uid=holder.uid,
        )

    def failed(self, pod: Pod, reason: str) -> None:
        """The reconciler's own line says it all."""

    def forget(self, uid: PodUID) -> None:
        """Everything was told at once."""
