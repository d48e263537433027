"""The redirection that most tests want."""

from ipaddress import IPv4Address, IPv6Address

from nodeagent.redirect.rules import RedirectSpec

PROBE_V4 = IPv4Address("169.254.7.127")
PROBE_V6 = IPv6Address("fd16:9254:7127:1337:ffff:ffff:ffff:ffff")


def spec(
    *,
    ipv6: bool = True,
    dns_capture: bool = False,
    bypass_inbound: bool = False,
    reroute_interfaces: tuple[str, ...] = (),
    keep_open: bool = False,
    leaving: bool = False,
) -> RedirectSpec:
    """A pod without overrides, but for those named."""
    return RedirectSpec(
        ipv6=ipv6,
        dns_capture=dns_capture,
        bypass_inbound=bypass_inbound,
        reroute_interfaces=reroute_interfaces,
        probe_v4=PROBE_V4,
        probe_v6=PROBE_V6,
        keep_open=keep_open,
        leaving=leaving,
    )
