"""Kubernetes distributions whose CNI directories are not in the usual places."""

import os
from dataclasses import dataclass

from nodeagent.config import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """One distribution; docs/cluster.md has the same table."""

    name: str
    marker: str
    """A directory that only its nodes have."""
    net_dir: str = "/etc/cni/net.d"
    bin_dir: str = "/opt/cni/bin"
    mounts: str = ""
    """What has to be mounted, where it is more than the two directories."""

    @property
    def places(self) -> str:
        """Both directories, for people."""
        return f"{self.net_dir} and {self.bin_dir}"


DISTRIBUTIONS = (
    Distribution(
        name="k3s",
        marker="/var/lib/rancher/k3s/agent",
        net_dir="/var/lib/rancher/k3s/agent/etc/cni/net.d",
        bin_dir="/var/lib/rancher/k3s/data/cni",
        mounts="/var/lib/rancher/k3s/data (deploy/components/k3s)",
    ),
    Distribution(
        name="MicroK8s",
        marker="/var/snap/microk8s/current",
        net_dir="/var/snap/microk8s/current/args/cni-network",
        bin_dir="/var/snap/microk8s/current/opt/cni/bin",
        mounts="/var/snap/microk8s, because a refresh of the snap turns the link `current`",
    ),
    Distribution(name="GKE", marker="/home/kubernetes/bin", bin_dir="/home/kubernetes/bin"),
    Distribution(
        name="OpenShift",
        marker="/etc/kubernetes/cni/net.d",
        net_dir="/etc/cni/multus/net.d",
        bin_dir="/var/lib/cni/bin",
    ),
)


def found(settings: Settings) -> Distribution | None:
    """The distribution of this node, if it is one of these and can be recognized."""
    # The marker need not be mounted: the host's root is also that of the host's PID 1.
    root = f"{settings.host_prefix}/proc/1/root" if settings.host_prefix else ""
    return next((each for each in DISTRIBUTIONS if os.path.isdir(root + each.marker)), None)
