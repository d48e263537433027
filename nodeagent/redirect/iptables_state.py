"""What iptables has of ours in a network namespace, and how that differs from intent.

First the kernel is asked, by ways that change nothing, whether there can be
anything: running a program to find out could make the tables that it looks for (L7).
"""

import errno
from collections.abc import Iterator, Mapping
from functools import lru_cache
from socket import AF_INET, AF_INET6

from nodeagent.linux.netlink import Netlink
from nodeagent.netfilter.errors import RulesError, explain
from nodeagent.netfilter.iptables import FIRST
from nodeagent.netfilter.iptables_legacy import read_chains, table_names
from nodeagent.netfilter.iptables_programs import Variant, restore
from nodeagent.netfilter.iptables_save import Chain
from nodeagent.netfilter.nfnetlink import NETLINK_NETFILTER
from nodeagent.netfilter.nft_state import count_uses, leads_to, read_chain, read_first_rule
from nodeagent.netfilter.rule import Family, Hook, Table
from nodeagent.netfilter.scratch import in_scratch_namespace
from nodeagent.redirect.iptables_rules import CHAINS, Place, Standing, render
from nodeagent.redirect.rules import RedirectSpec

_NUMBERS = {Family.V4: int(AF_INET), Family.V6: int(AF_INET6)}
# What a kernel says that was built without something.
_NO_TABLE = {errno.ENOENT, errno.ENOPROTOOPT}  # of legacy's
_NO_NFTABLES = {
    errno.EPROTONOSUPPORT,
    errno.EINVAL,
    errno.EOPNOTSUPP,
    errno.EAFNOSUPPORT,
}

Tables = Mapping[Family, Standing]
"""Chains with our names by family; a family without any is left out."""


def read(variant: Variant, *, making: bool = False) -> Tables:
    """Read those chains in the calling thread's namespace; raises `RulesError`.

    In the kernel's own messages: no program is run, and what others have beside them costs
    nothing with `Variant.NFT`, and little with `Variant.LEGACY`. Where legacy's tables
    cannot be listed, those who are `making` them anyway ask for each, which makes it.
    """
    if variant is Variant.NFT:
        found = {family: _read_nft(family) for family in Family}
    else:
        found = {family: _read_legacy(family, making=making) for family in Family}
    return {family: standing for family, standing in found.items() if standing}


@lru_cache(maxsize=64)
def reference(variant: Variant, spec: RedirectSpec, family: Family) -> Standing:
    """What `read` gives in one family where `spec` is true and nothing else was done.

    Found out by doing it, because each version of the programs has its own notation;
    64 keeps a tenant with many interface lists from growing it. Raises `RulesError`.
    """

    def done() -> Standing:
        if text := render(spec, family):
            restore(variant, family, text)
        return read(variant).get(family, {})

    return in_scratch_namespace(done)


def differences(have: Standing, want: Standing) -> Iterator[str]:
    """Say what has to change in `have` to make it `want`."""
    for place in (*want, *(place for place in have if place not in want)):
        for what in _place_differences(place, have, want):
            table, hook = place
            yield f"table {table}: chain {CHAINS[hook]} {what}"


def _place_differences(place: Place, have: Standing, want: Standing) -> Iterator[str]:
    if place not in have:
        yield "is missing"
    elif place not in want:
        yield "is not wanted"
    else:
        yield from _chain_differences(have[place], want[place])


def _chain_differences(have: Chain[bytes], want: Chain[bytes]) -> Iterator[str]:
    if have.jumps != FIRST:
        yield f"is jumped to at {', '.join(map(str, have.jumps))}" if have.jumps else "has no jump"
    if have.rules[:1] != want.rules[:1]:
        yield "has another layout version"
    if len(have.rules) != len(want.rules):
        yield f"has {len(have.rules)} rules instead of {len(want.rules)}"
        return
    pairs = zip(have.rules[1:], want.rules[1:], strict=True)
    for number, (mine, theirs) in enumerate(pairs, start=2):
        if mine != theirs:
            yield f"rule {number} differs"


def _read_legacy(family: Family, *, making: bool) -> Standing:
    try:
        tables, unsure = table_names(family), False
    except RulesError:
        if not making:
            raise
        tables, unsure = frozenset(Table), True
    found: dict[Place, Chain[bytes]] = {}
    for table in tables.intersection(Table):
        try:
            chains = read_chains(family, table, CHAINS)
        except RulesError as error:
            cause = error.__cause__
            if not (unsure and isinstance(cause, OSError) and cause.errno in _NO_TABLE):
                raise
        else:
            found |= {(Table(table), hook): chain for hook, chain in chains.items()}
    return found


def _read_nft(family: Family) -> Standing:
    try:
        with Netlink(NETLINK_NETFILTER) as netlink:
            return {
                (table, hook): chain
                for table in Table
                for hook in Hook
                if (chain := _read_nft_chain(netlink, _NUMBERS[family], table, hook))
            }
    except OSError as error:
        if error.errno in _NO_NFTABLES:
            return {}
        raise RulesError(f"cannot read the rules: {explain(error.errno or 0)}") from error


def _read_nft_chain(netlink: Netlink, family: int, table: Table, hook: Hook) -> Chain[bytes] | None:
    """Read one chain and its jumps; None where it is not there, or only for another's rule."""
    name = CHAINS[hook]
    uses = count_uses(netlink, family, table, name)
    if uses is None:
        return None
    rules = read_chain(netlink, family, table, name)
    leading = uses - len(rules)
    jumps = _nft_jumps(netlink, family, table, hook, leading) if leading else ()
    held = leading > len(jumps)
    return Chain(rules, jumps, held) if rules or jumps or not held else None


def _nft_jumps(
    netlink: Netlink, family: int, table: Table, hook: Hook, leading: int
) -> tuple[int, ...]:
    built_in, target = hook.upper(), (CHAINS[hook], True)
    try:
        if leading == 1:  # as it should be: what others have behind it need not be read
            first = read_first_rule(family, table, built_in)
            if first is not None and leads_to(first) == target:
                return FIRST
        rules = read_chain(netlink, family, table, built_in)
    except FileNotFoundError:
        return ()
    return tuple(at for at, rule in enumerate(rules, start=1) if leads_to(rule) == target)
