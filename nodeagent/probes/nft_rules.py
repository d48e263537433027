"""The host's rules for health probes in nft's own language."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from nodeagent.mesh.pod import IPAddress
from nodeagent.netfilter.layout import LAYOUT_VERSION
from nodeagent.netfilter.nft import render_removal

TABLE = "istio-ambient-nat"
"""In family inet, in the host's network namespace."""
CHAIN = "nodeagent-postrouting"
"""Istio's agent adds `ISTIO_CHAIN`, at another priority. The kernel refuses that for a chain that
stands, so under that name ours would keep Istio's agent from ever taking this agent's place."""
ISTIO_CHAIN = "postrouting"
"""What the chain is called in which Istio's agent has its rules for probes, in the same table."""
SETS = {4: "istio-inpod-probes-v4", 6: "istio-inpod-probes-v6"}
"""By version of the addresses in them."""

LAYOUT_MARK = "nodeagent layout "
"""In a comment on what is ours, with the layout's version behind it."""

# One before srcnat. Of two nat chains with the same priority the kernel asks the
# one first that came last, and the first verdict holds: a masquerade of anybody
# who starts after us would take the probes (L20).
_PRIORITY = 99

OWNER = re.compile(r"[A-Za-z0-9._-]{1,63}")
"""A pod's UID that can stand in a comment and say nothing but itself."""

Owners = Mapping[IPAddress, str]
"""The addresses in the sets; each with the UID of the pod it belongs to, or empty.

That is the element's comment; a comment that is no `OWNER` reads as empty.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeRules:
    """What the host's table should be, apart from the addresses in it."""

    probe_v4: IPv4Address
    probe_v6: IPv6Address
    ipv6: bool

    @property
    def versions(self) -> tuple[int, ...]:
        """Of the Internet Protocol, those whose probes are marked."""
        return (4, 6) if self.ipv6 else (4,)


def render(rules: ProbeRules, owners: Owners) -> str:
    """Return the text for ``nft -f`` that puts the table in place of what stands, in one go."""
    return render_removal([TABLE]) + render_table(rules) + render_additions(owners)


def render_additions(owners: Owners) -> str:
    """Return the text that adds addresses that are not in a set."""
    return "".join(
        f"add element inet {TABLE} {SETS[address.version]} {{ {address}{comment} }}\n"
        for address, owner in owners.items()
        for comment in (f' comment "{owner}"' if owner else "",)
    )


def render_deletions(addresses: Iterable[IPAddress]) -> str:
    """Return the text that deletes addresses that are in a set."""
    return "".join(
        f"delete element inet {TABLE} {SETS[address.version]} {{ {address} }}\n"
        for address in addresses
    )


def render_table(rules: ProbeRules) -> str:
    """Return the text that makes the table where there is none, without addresses."""
    probe = {4: rules.probe_v4, 6: rules.probe_v6}
    header = {4: "ip", 6: "ip6"}
    lines = [f"table inet {TABLE} {{", f'\tcomment "{LAYOUT_MARK}{LAYOUT_VERSION}"']
    for version in rules.versions:
        lines += [
            f"\tset {SETS[version]} {{",
            f"\t\ttype ipv{version}_addr",
            "\t}",
        ]
    lines += [
        f"\tchain {CHAIN} {{",
        f"\t\ttype nat hook postrouting priority {_PRIORITY}; policy accept;",
        # `skuid` is known only of a packet that a socket of this namespace sends:
        # kubelet, whatever it is called, and not what is forwarded (L21).
        *(
            f"\t\tmeta skuid >= 0 meta l4proto tcp {header[version]} daddr @{SETS[version]}"
            f" counter snat {header[version]} to {probe[version]}"
            for version in rules.versions
        ),
        "\t}",
        "}",
        "",
    ]
    return "\n".join(lines)
