"""What a pod's redirection should be, from the agent's settings and the pod's annotations.

The settings are the defaults; a pod's annotations override some of them for this pod.
"""

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Self

from nodeagent.config import Settings
from nodeagent.mesh.overrides import pod_overrides
from nodeagent.mesh.pod import Pod, PodUID
from nodeagent.redirect.rules import RedirectSpec

NO_POD = Pod(uid=PodUID(""), name="", namespace="")
"""A pod that overrides nothing: its redirection is what the settings say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RedirectDefaults:
    """What the settings say for every pod; the fields are those of `RedirectSpec`."""

    ipv6: bool
    dns_capture: bool
    probe_v4: IPv4Address
    probe_v6: IPv6Address
    keep_open: bool

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Take the values from the agent's settings."""
        return cls(
            ipv6=settings.ambient_ipv6,
            dns_capture=settings.ambient_dns_capture,
            probe_v4=settings.host_probe_snat_ip,
            probe_v6=settings.host_probe_snat_ipv6,
            keep_open=settings.keep_open_connections,
        )

    def of(self, pod: Pod) -> tuple[RedirectSpec, tuple[str, ...]]:
        """Return the spec of `pod`, and a warning for each annotation value that was ignored."""
        overrides, warnings = pod_overrides(pod, dns_capture=self.dns_capture)
        spec = RedirectSpec(
            ipv6=self.ipv6,
            dns_capture=overrides.dns_capture,
            bypass_inbound=overrides.bypass_inbound,
            reroute_interfaces=overrides.reroute_interfaces,
            probe_v4=self.probe_v4,
            probe_v6=self.probe_v6,
            keep_open=self.keep_open,
        )
        return spec, warnings
