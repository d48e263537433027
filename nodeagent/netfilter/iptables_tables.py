"""What iptables has installed of given chains in a network namespace, without running a program.

A chain of ours has the same name in each of iptables' tables and is called from a built-in
chain (a hook). It is read in the kernel's own messages, for both variants and both families.
Running a program to find out could make the tables that it looks for, and would list what
others have beside our chains.
"""

import errno
from collections.abc import Iterator, Mapping

from nodeagent.linux.netlink import Netlink
from nodeagent.netfilter.errors import RulesError, explain
from nodeagent.netfilter.iptables import FIRST
from nodeagent.netfilter.iptables_legacy import read_chains, table_names
from nodeagent.netfilter.iptables_programs import Variant
from nodeagent.netfilter.iptables_save import Chain
from nodeagent.netfilter.nfnetlink import NETLINK_NETFILTER
from nodeagent.netfilter.nft_state import count_uses, leads_to, read_chain, read_first_rule
from nodeagent.netfilter.rule import Family, Hook, Table

# What a kernel says that was built without something.
_NO_TABLE = {errno.ENOENT, errno.ENOPROTOOPT}  # of legacy's
_NO_NFTABLES = {
    errno.EPROTONOSUPPORT,
    errno.EINVAL,
    errno.EOPNOTSUPP,
    errno.EAFNOSUPPORT,
}

Names = Mapping[Hook, str]
"""The name of the chain for each hook."""
Place = tuple[Table, Hook]
Chains = Mapping[Place, Chain[bytes]]
"""The chains of one family that are there."""
Tables = Mapping[Family, Chains]
"""The chains of both families; a family without any is left out."""


def read_tables(variant: Variant, names: Names, *, making: bool = False) -> Tables:
    """Read the chains `names` in the calling thread's netns. Raises `RulesError`.

    What others have beside them costs nothing with `Variant.NFT`, and little with
    `Variant.LEGACY`. In a netns in which it cannot be listed which of legacy's tables there
    are, a caller that is `making` them anyway has each of them asked for, which makes it.
    """
    if variant is Variant.NFT:
        found = {family: _read_nft(family, names) for family in Family}
    else:
        found = {family: _read_legacy(family, names, making=making) for family in Family}
    return {family: chains for family, chains in found.items() if chains}


def differences(have: Chains, want: Chains, names: Names) -> Iterator[str]:
    """Say what has to change in `have`, one family's chains, to make it `want`."""
    for place in (*want, *(place for place in have if place not in want)):
        for what in _place_differences(place, have, want):
            table, hook = place
            yield f"table {table}: chain {names[hook]} {what}"


def _place_differences(place: Place, have: Chains, want: Chains) -> Iterator[str]:
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


def _read_legacy(family: Family, names: Names, *, making: bool) -> Chains:
    try:
        tables, unsure = table_names(family), False
    except RulesError:
        if not making:
            raise
        tables, unsure = frozenset(Table), True
    found: dict[Place, Chain[bytes]] = {}
    for table in tables.intersection(Table):
        try:
            chains = read_chains(family, table, names)
        except RulesError as error:
            cause = error.__cause__
            if not (unsure and isinstance(cause, OSError) and cause.errno in _NO_TABLE):
                raise
        else:
            found |= {(Table(table), hook): chain for hook, chain in chains.items()}
    return found


def _read_nft(family: Family, names: Names) -> Chains:
    try:
        with Netlink(NETLINK_NETFILTER) as netlink:
            return {
                (table, hook): chain
                for table in Table
                for hook, name in names.items()
                if (chain := _read_nft_chain(netlink, family.number, (table, hook), name))
            }
    except OSError as error:
        if error.errno in _NO_NFTABLES:
            return {}
        raise RulesError(f"cannot read the rules: {explain(error.errno or 0)}") from error


def _read_nft_chain(netlink: Netlink, family: int, place: Place, name: str) -> Chain[bytes] | None:
    """Read one chain and its jumps; None where it is not there, or only for another's rule."""
    table, _ = place
    uses = count_uses(netlink, family, table, name)
    if uses is None:
        return None
    rules = read_chain(netlink, family, table, name)
    leading = uses - len(rules)
    jumps = _nft_jumps(netlink, family, place, name, leading) if leading else ()
    held = leading > len(jumps)
    return Chain(rules, jumps, held) if rules or jumps or not held else None


def _nft_jumps(
    netlink: Netlink, family: int, place: Place, name: str, leading: int
) -> tuple[int, ...]:
    """Positions of the jumps to the chain `name` among the `leading` rules that lead to it."""
    table, hook = place
    built_in, target = hook.upper(), (name, True)
    try:
        if leading == 1:  # as it should be: what others have behind it need not be read
            first = read_first_rule(family, table, built_in)
            if first is not None and leads_to(first) == target:
                return FIRST
        rules = read_chain(netlink, family, table, built_in)
    except FileNotFoundError:
        return ()
    return tuple(at for at, rule in enumerate(rules, start=1) if leads_to(rule) == target)
