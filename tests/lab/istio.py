"""What Istio's own ambient agent leaves in a pod and on the host, for each of its backends (L42).

Written from its rule builders and the library that it sends routes with (vishvananda's
netlink), versions 1.27 to 1.29. Not made with any code of this agent.
"""

import socket
import struct
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv6Address

from nodeagent.linux.netlink import NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, Netlink, attribute
from nodeagent.netfilter.iptables_programs import Variant, restore
from nodeagent.netfilter.rule import Family
from tests.lab.ipsets import IptablesHost
from tests.lab.pod import Pod
from tests.lab.xtables import ISTIO, inside

_RTM_NEWROUTE, _RTM_NEWRULE = 24, 32
_FRA_PRIORITY, _FRA_FWMARK, _FRA_FWMASK = 6, 10, 16
_RTA_DST, _RTA_OIF = 1, 4
_HEADER = struct.Struct("=BBBBBBBBI")  # rtmsg, which the library sends for rules as well
_BOOT, _UNIVERSE, _HOST, _UNICAST, _LOCAL = 3, 0, 254, 1, 2

PROBE_V4 = "169.254.7.127"
PROBE_V6 = "fd16:9254:7127:1337:ffff:ffff:ffff:ffff"

_IN_POD = f"""
table inet istio-ambient-nat {{
    chain prerouting {{ type nat hook prerouting priority -100; jump istio-prerouting; }}
    chain output {{ type nat hook output priority -100; jump istio-output; }}
    chain istio-prerouting {{
        meta l4proto tcp ip saddr {PROBE_V4} counter accept
        meta l4proto tcp ip6 saddr {PROBE_V6} counter accept
        ip daddr != 127.0.0.1 tcp dport != 15008 mark & 0xfff != 0x539 counter redirect to :15006
        ip6 daddr != ::1 tcp dport != 15008 mark & 0xfff != 0x539 counter redirect to :15006
    }}
    chain istio-output {{
        meta l4proto tcp ip daddr {PROBE_V4} counter accept
        meta l4proto tcp ip6 daddr {PROBE_V6} counter accept
        oifname != lo mark & 0xfff != 0x539 udp dport 53 counter redirect to :15053
        ip daddr != 127.0.0.1 tcp dport 53 mark & 0xfff != 0x539 counter redirect to :15053
        ip6 daddr != ::1 tcp dport 53 mark & 0xfff != 0x539 counter redirect to :15053
        meta l4proto tcp mark & 0xfff == 0x111 counter accept
        oifname lo ip daddr != 127.0.0.1 counter accept
        oifname lo ip6 daddr != ::1 counter accept
        meta l4proto tcp ip daddr != 127.0.0.1 mark & 0xfff != 0x539 counter redirect to :15001
        meta l4proto tcp ip6 daddr != ::1 mark & 0xfff != 0x539 counter redirect to :15001
    }}
}}
table inet istio-ambient-mangle {{
    chain prerouting {{ type filter hook prerouting priority -150; jump istio-prerouting; }}
    chain output {{ type route hook output priority -150; jump istio-output; }}
    chain istio-prerouting {{ mark & 0xfff == 0x539 counter ct mark set ct mark & 0xfffff000 | 0x111; }}
    chain istio-output {{ ct mark & 0xfff == 0x111 counter meta mark set ct mark; }}
}}
table inet istio-ambient-raw {{
    chain prerouting {{ type filter hook prerouting priority -300; jump istio-prerouting; }}
    chain output {{ type filter hook output priority -300; jump istio-output; }}
    chain istio-prerouting {{ udp sport 53 mark & 0xfff != 0x539 counter ct zone set 1; }}
    chain istio-output {{ udp dport 53 mark & 0xfff == 0x539 counter ct zone set 1; }}
}}
"""  # noqa: E501


def take_over(pod: Pod) -> None:
    """Have Istio's agent, with native nftables, come to a pod with rules of this agent's.

    It adds its tables, flushes them, and adds its chains and rules. Raises ``AssertionError``
    where the kernel refuses.
    """
    names = [f"istio-ambient-{table}" for table in ("nat", "mangle", "raw")]
    emptied = "".join(f"add table inet {name}\nflush table inet {name}\n" for name in names)
    pod.shell("nft -f -", stdin=emptied + _IN_POD)


def enroll(pod: Pod, variant: Variant | None) -> None:
    """Make `pod` what it is after Istio's agent has enrolled it; None: with native nftables."""
    pod.run(_route_replies)
    if variant is None:
        pod.shell("nft -f -", stdin=_IN_POD)
        return
    for family in Family:
        inside(pod, restore, variant, family, ISTIO[family])


def let_probes_through(
    host: IptablesHost, variant: Variant | None, pods: Mapping[str, Pod]
) -> None:
    """Make the host what it is with `pods`, by their UIDs, enrolled."""
    addresses = [(uid, address) for uid, pod in pods.items() for address in pod.addresses]
    if variant is None:
        host.nft(_on_host(addresses))
        return
    host.shell(
        "ipset create istio-inpod-probes-v4 hash:ip comment",
        "ipset create istio-inpod-probes-v6 hash:ip family inet6 comment",
        *(
            f"ipset add istio-inpod-probes-v{address.version} {address} comment {uid}"
            for uid, address in addresses
        ),
    )
    for program, version, probe in (("iptables", 4, PROBE_V4), ("ip6tables", 6, PROBE_V6)):
        nat = f"{program}-{variant} -t nat"
        host.shell(
            f"{nat} -N ISTIO_POSTRT",
            f"{nat} -I POSTROUTING 1 -j ISTIO_POSTRT",
            f"{nat} -A ISTIO_POSTRT -m owner --socket-exists -p tcp"
            f" -m set --match-set istio-inpod-probes-v{version} dst -j SNAT --to-source {probe}",
        )


def _on_host(addresses: list[tuple[str, IPv4Address | IPv6Address]]) -> str:
    sets, rules = "", ""
    for version, kind, ip, probe in ((4, "ipv4", "ip", PROBE_V4), (6, "ipv6", "ip6", PROBE_V6)):
        name = f"istio-inpod-probes-v{version}"
        elements = ", ".join(
            f'{address} comment "{uid}"' for uid, address in addresses if address.version == version
        )
        sets += (
            f"set {name} {{ type {kind}_addr;"
            ' comment "UUID of the pods that are part of ambient mesh";'
            f" elements = {{ {elements} }}; }};"
        )
        # The user that kubelet runs as.
        rules += f"meta l4proto tcp meta skuid 0 {ip} daddr @{name} counter snat to {probe};"
    chain = f"chain postrouting {{ type nat hook postrouting priority 100; {rules} }};"
    return f"table inet istio-ambient-nat {{ {sets} {chain} }}"


def _route_replies() -> None:
    """Both in table 100; a number below 256 goes into the header, and no protocol is named."""
    with Netlink(socket.NETLINK_ROUTE) as netlink:
        for family in (socket.AF_INET, socket.AF_INET6):
            anywhere = bytes(4 if family == socket.AF_INET else 16)
            netlink.request(
                _RTM_NEWROUTE,
                NLM_F_CREATE | NLM_F_REPLACE,
                _HEADER.pack(family, 0, 0, 0, 100, _BOOT, _HOST, _LOCAL, 0)
                + attribute(_RTA_DST, anywhere)
                + attribute(_RTA_OIF, struct.pack("=I", socket.if_nametoindex("lo"))),
            )
            netlink.request(
                _RTM_NEWRULE,
                NLM_F_CREATE | NLM_F_EXCL,
                _HEADER.pack(family, 0, 0, 0, 100, _BOOT, _UNIVERSE, _UNICAST, 0)
                + attribute(_FRA_FWMARK, struct.pack("=I", 0x111))
                + attribute(_FRA_FWMASK, struct.pack("=I", 0xFFF))
                + attribute(_FRA_PRIORITY, struct.pack("=I", 32764)),
            )
