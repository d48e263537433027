"""The backend that replays what libnftables once made of the same rules."""

import struct

from nodeagent.netfilter import nft_batch as batch
from nodeagent.netfilter import nft_state as standing
from nodeagent.redirect.nft_rules import CHAIN_NAMES
from nodeagent.redirect.rules import REPLY_MARK, PodRedirect, Table

_LAYOUT = b"nodeagent layout "
"""In the comment of each table of ours."""
_REPLY_MARK = struct.pack("=I", REPLY_MARK.value)


class NftablesBackend:
    """See `nodeagent.redirect.backend.Backend`. All of a pod's rules are one transaction."""

    counted = True

    def __str__(self) -> str:
        return "nftables"

    def inspect(self, spec: PodRedirect) -> tuple[str, ...]:
        """See `Backend`."""
        return _differences(spec, standing.read())

    def ensure(self, spec: PodRedirect) -> tuple[str, ...]:
        """See `Backend`."""
        have = standing.read()
        found = _differences(spec, have)
        if found:
            batch.replace(have, standing.reference(spec))
        return found

    def stands(self) -> bool:
        """See `Backend`."""
        return bool(_proven(standing.read()))

    def remove(self) -> bool:
        """See `Backend`."""
        have = _proven(standing.read())
        if have:
            batch.remove(have)
        return bool(have)


def _proven(have: standing.Tables) -> standing.Tables:
    """Those tables that are ours, or made as Istio's ambient agent makes them (L30)."""
    marked = {name for name, table in have.items() if _LAYOUT in table.layout}
    mangle = have.get(f"istio-ambient-{Table.MANGLE}")
    if not marked and not (mangle and _uses_reply_mark(mangle)):
        return {}
    return {name: table for name, table in have.items() if name in marked or _has_shape(table)}


def _uses_reply_mark(table: standing.Standing) -> bool:
    rules = (rule for chain in table.chains.values() for rule in chain.rules)
    return any(_REPLY_MARK in rule for rule in rules)


def _has_shape(table: standing.Standing) -> bool:
    return table.chains.keys() <= set(CHAIN_NAMES) and table.members == len(table.chains)


def _differences(spec: PodRedirect, have: standing.Tables) -> tuple[str, ...]:
    # A pod that was just made has none of our tables: nothing to compare with.
    if not have:
        return ("rules are missing",)
    return tuple(standing.differences(have, standing.reference(spec)))
