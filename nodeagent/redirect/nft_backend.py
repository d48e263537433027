"""The backend that reads and writes nftables with the kernel's own messages.

libnftables turns a spec's text into rules once, in a scratch netns, and what the kernel has
there then is read (`reference`). A pod is compared with that, and where it differs, that is
written to it, in one transaction.
"""

import struct
import threading
from functools import lru_cache

from nodeagent.netfilter import nft_batch, nft_state
from nodeagent.netfilter.layout import LAYOUT_MARK
from nodeagent.netfilter.nft import apply
from nodeagent.netfilter.nft_state import Tables, TableState
from nodeagent.netfilter.rule import Table
from nodeagent.netfilter.scratch import in_scratch_netns
from nodeagent.redirect.nft_rules import CHAIN_NAMES, TABLE_NAMES, render
from nodeagent.redirect.rules import REPLY_MARK, RedirectSpec

_REPLY_MARK = struct.pack("=I", REPLY_MARK.value)


def read() -> Tables:
    """Read our tables in the calling thread's netns. Raises `RulesError`."""
    return nft_state.read_tables(TABLE_NAMES, CHAIN_NAMES)


def reference(spec: RedirectSpec) -> Tables:
    """What `read` gives where `spec` is true and nothing else was done.

    Found out by making these rules in a netns that exists only for this call. Pods differ in
    few ways, so it happens a few times in the agent's life. Only of interface lists there are
    as many as tenants write: who has one neither makes others wait nor takes the place of
    their rules in the cache. Raises `RulesError`.
    """
    # The first pods come all at once, with the same rules: the others wait for the first's.
    if spec.reroute_interfaces:
        with _finding_out_for_lists:
            return _found_out_for_lists(spec)
    with _finding_out:
        return _found_out(spec)


_finding_out, _finding_out_for_lists = threading.Lock(), threading.Lock()


def _find_out(spec: RedirectSpec) -> Tables:
    def done() -> Tables:
        apply(render(spec, replacing=()))
        return read()

    return in_scratch_netns(done)


_found_out = lru_cache(maxsize=None)(_find_out)
"""Without a bound: what is left of a spec without its list is a few yes and no."""
_found_out_for_lists = lru_cache(maxsize=64)(_find_out)


class NftablesBackend:
    """See `nodeagent.redirect.backend.Backend`. All of a pod's rules are one transaction."""

    counted = True

    def __str__(self) -> str:
        return "nftables"

    def inspect(self, spec: RedirectSpec) -> tuple[str, ...]:
        """See `Backend`."""
        return _differences(spec, read())

    def ensure(self, spec: RedirectSpec) -> tuple[str, ...]:
        """See `Backend`."""
        have = read()
        found = _differences(spec, have)
        if found:
            nft_batch.replace(have, reference(spec))
        return found

    def is_installed(self) -> bool:
        """See `Backend`."""
        return bool(_proven(read()))

    def remove(self) -> bool:
        """See `Backend`."""
        have = _proven(read())
        if have:
            nft_batch.remove(have)
        return bool(have)


def _proven(have: Tables) -> Tables:
    """Return those tables that are ours, or made as Istio's ambient agent makes them (L30)."""
    marked = {name for name, table in have.items() if LAYOUT_MARK.encode() in table.comment}
    mangle = have.get(f"istio-ambient-{Table.MANGLE}")
    if not marked and not (mangle and _uses_reply_mark(mangle)):
        return {}
    return {name: table for name, table in have.items() if name in marked or _has_shape(table)}


def _uses_reply_mark(table: TableState) -> bool:
    rules = (rule for chain in table.chains.values() for rule in chain.rules)
    return any(_REPLY_MARK in rule for rule in rules)


def _has_shape(table: TableState) -> bool:
    return table.chains.keys() <= set(CHAIN_NAMES) and table.members == len(table.chains)


def _differences(spec: RedirectSpec, have: Tables) -> tuple[str, ...]:
    # A pod that was just made has none of our tables: nothing to compare with.
    if not have:
        return ("rules are missing",)
    return tuple(nft_state.differences(have, reference(spec)))
