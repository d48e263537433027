"""What another backend or Istio's own agent has put on a host, and a look at which it was."""

from ipaddress import ip_address

from nodeagent.netfilter.iptables_programs import Variant
from tests.lab.host import PROBE_V4, SET_V4, SET_V6, TABLE
from tests.lab.ipsets import IptablesHost

V4 = ip_address("10.1.0.1")
"""The address in Istio's sets."""

ISTIO_TABLE = f"""
add table {TABLE}
add set {TABLE} {SET_V4} {{ type ipv4_addr ; comment "UUID of the pods" ; }}
add set {TABLE} {SET_V6} {{ type ipv6_addr ; comment "UUID of the pods" ; }}
add element {TABLE} {SET_V4} {{ {V4} comment "a" }}
add chain {TABLE} postrouting {{ type nat hook postrouting priority 100 ; }}
add rule {TABLE} postrouting meta l4proto tcp skuid 1000 ip daddr @{SET_V4} counter\
 snat to {PROBE_V4}
"""
"""As the nftables backend of Istio 1.27 to 1.29 makes it."""
_RULE = f"-m set --match-set {SET_V4} dst -j SNAT --to-source {PROBE_V4}"
ISTIO_CHAIN = [
    f"ipset create {SET_V4} hash:ip comment",
    f"ipset add {SET_V4} {V4} comment a",
    "iptables-{} -t nat -N ISTIO_POSTRT",
    "iptables-{} -t nat -A POSTROUTING -j ISTIO_POSTRT",
    f"iptables-{{}} -t nat -A ISTIO_POSTRT -m owner --socket-exists -p tcp {_RULE}",
]


def istio(host: IptablesHost, owner: Variant | None) -> None:
    """Have Istio's ambient agent come to the host, with this backend."""
    if owner is None:
        host.nft(ISTIO_TABLE)
    else:
        host.shell(*(command.format(owner) for command in ISTIO_CHAIN))


def in_use(host: IptablesHost) -> set[Variant | None]:
    """In which languages there are rules for probes, ours or Istio's; None: nftables."""
    found: set[Variant | None] = {v for v in Variant if "ISTIO" in host.iptables(v)}
    return found | ({None} if TABLE in host.nft("list ruleset") else set())
