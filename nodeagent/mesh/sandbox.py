"""What the container runtime is making for a pod, as its CNI plugin tells it."""

from dataclasses import dataclass

from nodeagent.mesh.pod import IPAddress


@dataclass(frozen=True, slots=True, kw_only=True)
class Sandbox:
    """One attachment of a pod's sandbox: known before Kubernetes knows the pod's address.

    A pod can have several in its life, one after the other under the same UID.
    """

    container_id: str
    netns: str
    """Path of the network namespace, on the host."""
    addresses: tuple[IPAddress, ...]
    network: str
    """Name of the network configuration that made it."""
    interface: str
