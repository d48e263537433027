"""Pods and Kubernetes namespaces, reduced to what the agent uses.

Pod sources drop everything else as soon as they have read it: a node's pods, with all that
the API server has of them, would take many times the memory.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import NewType

PodUID = NewType("PodUID", str)
IPAddress = IPv4Address | IPv6Address

TERMINAL_PHASES = frozenset({"Succeeded", "Failed"})


@dataclass(frozen=True, slots=True)
class Pod:
    """What a pod source knows of one pod. Two are equal if nothing has changed that matters."""

    uid: PodUID
    name: str
    namespace: str
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    """Only those in `RELEVANT_ANNOTATIONS`."""
    addresses: tuple[IPAddress, ...] = ()
    service_account: str = "default"
    host_network: bool = False
    phase: str = "Running"
    deleting: bool = False
    """The pod was deleted, but runs until its containers have ended: it stays in the mesh."""

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"

    @property
    def ended(self) -> bool:
        """Whether its containers have ended for good. That a pod is deleted does not say so."""
        return self.phase in TERMINAL_PHASES

    @property
    def sandbox_uid(self) -> str:
        """The UID by which the runtime and the cgroups know the pod.

        For a static pod that is the hash of its manifest; the UID that the API server has is
        that of the mirror pod.
        """
        if CONFIG_MIRROR in self.annotations:
            return self.annotations.get(CONFIG_HASH, self.uid)
        return self.uid


@dataclass(frozen=True, slots=True)
class Namespace:
    """A Kubernetes namespace: its labels decide for the pods in it."""

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)


SIDECAR_STATUS = "sidecar.istio.io/status"
NETNS_PATH = "nodeagent.io/netns"
REDIRECTION = "ambient.istio.io/redirection"
BYPASS_INBOUND_CAPTURE = "ambient.istio.io/bypass-inbound-capture"
DNS_CAPTURE = "ambient.istio.io/dns-capture"
REROUTE_VIRTUAL_INTERFACES = "istio.io/reroute-virtual-interfaces"
CONFIG_HASH = "kubernetes.io/config.hash"
CONFIG_MIRROR = "kubernetes.io/config.mirror"

RELEVANT_ANNOTATIONS = frozenset(
    {
        SIDECAR_STATUS,
        NETNS_PATH,
        REDIRECTION,
        BYPASS_INBOUND_CAPTURE,
        DNS_CAPTURE,
        REROUTE_VIRTUAL_INTERFACES,
        CONFIG_HASH,
        CONFIG_MIRROR,
    }
)
"""The annotations that the agent reads; a pod source drops the others (L25)."""
LONGEST_ANNOTATION = 4096
"""Characters of a value that a pod source keeps: four times what `MAX_INTERFACES` names
take, the longest that the agent reads. The API server lets a pod have 256 KiB (L34)."""
