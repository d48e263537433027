"""The host's rules for health probes in nft's own language: text for ``nft -f``."""

from collections.abc import Iterable

from nodeagent.mesh.pod import IPAddress
from nodeagent.netfilter.layout import LAYOUT_COMMENT
from nodeagent.netfilter.nft import render_removal
from nodeagent.probes.rules import SETS, Owners, ProbeRules

TABLE = "istio-ambient-nat"
"""In family inet, in the host's network namespace. The name is Istio's, too."""
CHAIN = "nodeagent-postrouting"
"""Istio's agent adds `ISTIO_CHAIN` with another priority. The kernel refuses to add a chain that
exists with another priority, so under that name ours would keep Istio's agent from ever taking
this agent's place."""
ISTIO_CHAIN = "postrouting"
"""The chain, in the same table, in which Istio's agent has its rules for probes."""

# One before srcnat. Of two nat chains with the same priority the kernel asks the
# one first that came last, and the first verdict holds: a masquerade of anybody
# who starts after us would take the probes (L20).
_PRIORITY = 99


def render(rules: ProbeRules, owners: Owners) -> str:
    """Return the text that replaces the table, whatever is in it, in one transaction."""
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
    lines = [f"table inet {TABLE} {{", f'\tcomment "{LAYOUT_COMMENT}"']
    for version in rules.versions:
        lines += [
            f"\tset {SETS[version]} {{",
            f"\t\ttype ipv{version}_addr",
            "\t}",
        ]
    lines += [
        f"\tchain {CHAIN} {{",
        f"\t\ttype nat hook postrouting priority {_PRIORITY}; policy accept;",
        # `skuid` is known only of a packet that a socket of this network namespace sends:
        # kubelet does, whatever its process is called; a forwarded packet has none (L21).
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
