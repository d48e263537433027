"""How many packets each of the agent's rules in a pod has seen."""

import re

import nftables

from nodeagent.redirect.nft_rules import TABLE_NAMES
from tests.lab.pod import Pod

_CHAIN = re.compile(r"\s*chain (\S+) \{")
_RULE = re.compile(r"\s*(.*?)\s*counter packets (\d+) bytes \d+ (.*)")


def counters(pod: Pod) -> dict[str, int]:
    """Packets by rule: ``nat istio-output: ip daddr … redirect to :15001``, in order.

    A NAT rule sees the first packet of a connection only.
    """
    return pod.run(_read)


def _read() -> dict[str, int]:
    library = nftables.Nftables()
    found: dict[str, int] = {}
    for table in TABLE_NAMES:
        # One command each: 1.0.6 forgets the other tables within one buffer.
        code, listing, _ = library.cmd(f"list table inet {table}")
        chain = ""
        for line in listing.splitlines() if code == 0 else ():
            if match := _CHAIN.match(line):
                chain = match[1]
            elif match := _RULE.match(line):
                condition, packets, verdict = match.groups()
                stage = table.removeprefix("istio-ambient-")
                text = " ".join(filter(None, (condition, verdict)))
                found[f"{stage} {chain}: {text}"] = int(packets)
    return found
