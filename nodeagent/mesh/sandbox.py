"""A pod's sandbox, as the CNI plugin hands it over while the container runtime makes it."""

from dataclasses import dataclass

from nodeagent.mesh.pod import IPAddress


@dataclass(frozen=True, slots=True, kw_only=True)
class Sandbox:
    """One attachment of a sandbox to a network, with addresses that Kubernetes learns later.

    A pod can have several sandboxes, one after the other, under the same UID.
    """

    container_id: str
    netns: str
    """Path of the network namespace, on the host."""
    addresses: tuple[IPAddress, ...]
    network: str
    """Name of the network configuration that made it."""
    interface: str
