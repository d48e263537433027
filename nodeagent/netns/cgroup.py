"""Which pods a process belongs to, as the path of its cgroup tells.

kubelet puts a pod's UID into the name of the pod's cgroup, after ``pod``. What stands
around it differs with the cgroup driver, the runtime and the cgroup version:
https://github.com/kubernetes/kubernetes/tree/master/pkg/kubelet/cm
"""

import re

_HEX = "[0-9a-f]"
# systemd's slices use the dash for nesting, so kubelet writes the UID's dashes otherwise.
_DASH = "[^0-9A-Za-z/\n]"
_UUID = rf"{_HEX}{{8}}(?:{_DASH}{_HEX}{{4}}){{3}}{_DASH}{_HEX}{{12}}"
# kubelet knows a static pod by the MD5 of its manifest.
_HASH = f"{_HEX}{{32}}"
_POD = re.compile(rf"(?<![0-9A-Za-z])pod({_UUID}|{_HASH})(?![0-9A-Za-z])")
_ANY_DASH = re.compile("[^0-9a-f]")


def pod_uids(text: str) -> frozenset[str]:
    """The UIDs in `text`: a path, or all of ``/proc/PID/cgroup``. None where it is no pod's.

    They are several where a node of Kubernetes runs inside a pod of another.
    """
    return frozenset(_ANY_DASH.sub("-", found) for found in _POD.findall(text))
