"""Which pod a process belongs to, as the paths of its cgroups tell.

kubelet puts a pod's UID into the name of the pod's cgroup, after ``pod``. What is before
and after it differs with the cgroup driver, the runtime and the cgroup version:
https://github.com/kubernetes/kubernetes/tree/master/pkg/kubelet/cm

What is below a pod's cgroup is named by whoever may write there, which can be the pod.
So of each path only the outermost pod counts (L39).
"""

import re
from collections.abc import Iterator

_HEX = "[0-9a-f]"
# systemd's slices use the dash for nesting, so kubelet writes the UID's dashes otherwise.
_DASH = "[^0-9A-Za-z/\n]"
_UUID = rf"{_HEX}{{8}}(?:{_DASH}{_HEX}{{4}}){{3}}{_DASH}{_HEX}{{12}}"
# kubelet knows a static pod by the MD5 of its manifest.
_HASH = f"{_HEX}{{32}}"
_POD = re.compile(rf"(?<![0-9A-Za-z])pod({_UUID}|{_HASH})(?![0-9A-Za-z])")
_ANY_DASH = re.compile("[^0-9a-f]")


def pods_above(text: str) -> frozenset[str]:
    """All UIDs in `text`, which is ``/proc/1/cgroup`` of the node.

    A node can itself run in a pod of another cluster. That pod is above kubelet's own
    cgroups, and none of this node's.
    """
    return frozenset(_uids(text))


def pod_uid(text: str, above: frozenset[str] = frozenset()) -> str | None:
    """The UID of the pod that a process with ``/proc/PID/cgroup`` `text` belongs to.

    None where it belongs to no pod. Also None where its cgroups of several hierarchies
    (cgroup v1) name several pods: no runtime makes such a process. `above`: see `pods_above`.
    """
    outermost = {
        next((uid for uid in _uids(line) if uid not in above), None) for line in text.split("\n")
    }
    outermost.discard(None)
    return outermost.pop() if len(outermost) == 1 else None


def _uids(path: str) -> Iterator[str]:
    return (_ANY_DASH.sub("-", match[1]) for match in _POD.finditer(path))
