"""What the host's rules for health probes are, in whichever language they are written.

For each version of the Internet Protocol there is a set with the addresses of enrolled
pods, and a rule: TCP that a process of the host sends to an address in the set gets the
probe address as its source. Ztunnel and the pod's own rules let that source through.
Each address in a set carries the UID of the pod that it was put in for, as its comment.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from nodeagent.mesh.pod import IPAddress, PodUID

SETS = {4: "istio-inpod-probes-v4", 6: "istio-inpod-probes-v6"}
"""The sets' names by version of the addresses in them. They are Istio's, too."""

OWNER = re.compile(r"[A-Za-z0-9._-]{1,63}")
"""A pod's UID that can stand in a comment of nft or ipset without being taken for syntax."""

Owners = Mapping[IPAddress, str]
"""The addresses in the sets, each with the UID of the pod it was put in for.

The UID is empty where the comment in the set is missing or no `OWNER`.
"""

Claims = Mapping[PodUID, frozenset[IPAddress]]
"""The addresses that each pod should have in the sets; of two pods with one address the
later one in the mapping gets it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeRules:
    """What the host's rules should be, apart from the addresses in the sets."""

    probe_v4: IPv4Address
    """The source address that probes get (setting HOST_PROBE_SNAT_IP)."""
    probe_v6: IPv6Address
    """Likewise (HOST_PROBE_SNAT_IPV6)."""
    ipv6: bool
    """Whether there are a rule and a set for IPv6 (AMBIENT_IPV6)."""

    @property
    def versions(self) -> tuple[int, ...]:
        """The versions of the Internet Protocol for which there are a rule and a set."""
        return (4, 6) if self.ipv6 else (4,)


def owner_in(comment: str) -> str:
    """The UID in an element's comment; empty where somebody else wrote something else there."""
    return comment if OWNER.fullmatch(comment) else ""


def claimed_addresses(claims: Claims, versions: Collection[int]) -> dict[IPAddress, str]:
    """The addresses of these `versions` that pods claim, each with the latest pod's UID."""
    return {
        address: uid
        for uid, addresses in claims.items()
        for address in addresses
        if address.version in versions
    }
