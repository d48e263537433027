"""What is done about somebody who keeps undoing our repairs.

Repairs become less frequent, so that two programs do not write in turns for ever, and the
other one is guessed by the names in the directory, for a message with the setting that ends
the quarrel.
"""

from collections.abc import Iterable

_FIRST, _LONGEST = 1.0, 30.0
"""Seconds between two repairs: at most one a second (docs/cni.md), and less and less often."""
_QUIET = 60.0
"""Seconds beyond the pause without a repair, after which the next one is a first again."""
_A_HABIT = 3
"""Repairs in a row that are no accident any more."""

_EXCLUSIVE = {
    "cilium": "Cilium, which allows no other configuration: set its cni.exclusive=false",
    "istio-cni": "Istio's own CNI agent, which is installed too: uninstall it",
}
_WRITES_ANEW = {
    "multus": "Multus",
    "calico": "Calico's install-cni",
    "aws-cni": "the AWS VPC CNI's aws-node",
    "flannel": "Flannel's install-cni",
    "kindnet": "kindnet",
    "ovn-k8s": "ovnkube-node",
    "weave": "Weave's launcher",
}
"""Known by what is in files' names and plugins' types."""


class RepairThrottle:
    """Spaces repairs. Times are of one monotonic clock, in seconds."""

    def __init__(self) -> None:
        self._pause = _FIRST
        self._last: float | None = None
        self._in_a_row = 0

    def wait(self, now: float) -> float:
        """Seconds until the next repair may be."""
        return 0.0 if self._last is None else max(0.0, self._last + self._pause - now)

    def wrote(self, now: float) -> None:
        """Note that something was written that nobody had undone."""
        self._last = now

    def repaired(self, now: float) -> bool:
        """Note that something undone was put back; return whether that is just now a habit."""
        if self._last is None or now - self._last >= self._pause + _QUIET:
            self._in_a_row, self._pause = 0, _FIRST
        self._in_a_row += 1
        if self._in_a_row >= _A_HABIT:
            self._pause = min(2 * self._pause, _LONGEST)
        self._last = now
        return self._in_a_row == _A_HABIT


def likely_cause(traces: Iterable[str], *, own_file: bool) -> str:
    """Who is known to undo what we do, and what ends it; '' if nobody.

    `traces` are the names of the files around ours, and the types of the plugins in
    those files; `own_file`: our entry is not in a file of theirs.
    """
    seen = " ".join(traces).lower()
    for trace, who in _EXCLUSIVE.items():
        if trace in seen:
            return who
    if own_file:
        return ""
    for trace, who in _WRITES_ANEW.items():
        if trace in seen:
            return f"{who}, which writes its list anew: set ISTIO_OWNED_CNI_CONFIG=true"
    return ""
