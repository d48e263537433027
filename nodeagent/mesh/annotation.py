"""The annotation that tells the cluster whether a pod is redirected, as far as is known here.

There are two sources: what the pod source (the watch on the API server) says, and what the
agent itself has reported. The watch may be late: what it brings can be older than what the
agent wrote.
"""

from enum import Enum

from nodeagent.mesh.pod import REDIRECTION, Pod


class Redirection(Enum):
    """Values of the annotation `REDIRECTION`; a pod without it is not redirected."""

    PENDING = "pending"
    ENABLED = "enabled"


class PodAnnotation:
    """What one pod's annotation says. Both who sees it and who reports it tell this object."""

    __slots__ = ("_promised", "_seen", "_value", "was_set")

    def __init__(self, pod: Pod) -> None:
        """`pod` as it is seen for the first time."""
        self._value = self._seen = _redirection_on(pod)
        self._promised = self._value is Redirection.ENABLED
        self.was_set = self._value is not None
        """It was set when the pod was first seen: an earlier agent may have left rules."""

    @property
    def value(self) -> Redirection | None:
        """The newest value that was seen or reported; None: there is no annotation."""
        return self._value

    @property
    def says_enabled(self) -> bool:
        """Whether some peer may take the pod for `enabled`.

        So where the annotation says so now, and where it was `enabled` at first or when it
        was last reported: a value that was seen since may be older than that.
        """
        return self._promised or self._value is Redirection.ENABLED

    def seen(self, pod: Pod, *, anew: bool) -> None:
        """Take what the source says of `pod`.

        A value that the source has said before is no news, unless the pod was gone
        meanwhile (`anew`): what was on its way to the cluster then has been dropped.
        """
        value = _redirection_on(pod)
        if anew or value is not self._seen:
            self._value = value
        self._seen = value

    def reported(self, value: Redirection | None) -> None:
        """Take what the agent has just reported."""
        self._value = value
        self._promised = value is Redirection.ENABLED


def _redirection_on(pod: Pod) -> Redirection | None:
    """Read the annotation of `pod`; a value that is unknown counts as none."""
    try:
        return Redirection(pod.annotations.get(REDIRECTION))
    except ValueError:
        return None
