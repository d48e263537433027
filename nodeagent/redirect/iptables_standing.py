"""What iptables has of ours in a network namespace, and how that differs from intent.

First the kernel is asked, by ways that change nothing, whether there can be
anything: running a program to find out could make the tables that it looks for (L7).
"""

import errno
from collections.abc import Iterator, Mapping
from functools import lru_cache
from socket import AF_INET, AF_INET6

from nodeagent.netlink import Netlink, attributes
from nodeagent.redirect.errors import RedirectError, translated
from nodeagent.redirect.iptables import CHAINS, FIRST, Place, Standing, parse, render
from nodeagent.redirect.iptables_programs import Variant, restore, save
from nodeagent.redirect.iptables_save import Chain
from nodeagent.redirect.rules import Family, PodRedirect, Table
from nodeagent.redirect.scratch import in_scratch_namespace

# linux/netfilter/nf_tables.h and nfnetlink.h
_NETLINK_NETFILTER = 12
_GETCHAIN = 10 << 8 | 4
_ANY_FAMILY = bytes(4)
_HEADER_SIZE = 4
_CHAIN_TABLE, _CHAIN_NAME = 1, 3
_FAMILIES = {int(AF_INET): Family.V4, int(AF_INET6): Family.V6}
# What a kernel says that was built without nf_tables.
_NO_NFTABLES = {errno.EPROTONOSUPPORT, errno.EINVAL, errno.EOPNOTSUPP}

# Of the thread's own network namespace; they list the tables that were made there.
_LEGACY_NAMES = {
    Family.V4: "/proc/thread-self/net/ip_tables_names",
    Family.V6: "/proc/thread-self/net/ip6_tables_names",
}

Tables = Mapping[Family, Standing]
"""Chains with our names by family; a family without any is left out."""


def read(variant: Variant) -> Tables:
    """Read our chains in the calling thread's namespace; raises `RedirectError`."""
    return {
        family: standing
        for family, tables in _tables(variant).items()
        if (standing := _read(variant, family, tables))
    }


def legacy_listings() -> Iterator[str]:
    """List each family that has legacy tables in the calling thread's namespace.

    Raises `RedirectError`.
    """
    for family, path in _LEGACY_NAMES.items():
        with translated("look for iptables' tables"):
            tables = _legacy_tables(path)
        if tables:
            yield save(Variant.LEGACY, family)


@lru_cache(maxsize=64)
def reference(variant: Variant, spec: PodRedirect) -> Tables:
    """What `read` gives where `spec` is true and nothing else was done.

    Found out by doing it, because each version of the programs has its own notation;
    64 keeps a tenant with many interface lists from growing it. Raises `RedirectError`.
    """

    def done() -> Tables:
        for family in spec.families:
            restore(variant, family, render(spec, family))
        return read(variant)

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


def _chain_differences(have: Chain, want: Chain) -> Iterator[str]:
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


def _read(variant: Variant, family: Family, tables: frozenset[str]) -> Standing:
    listing = save(variant, family)
    for table in sorted(tables):
        if f"*{table}\n" not in listing:
            # Not known is not the same as not there: nothing is written on top of it.
            raise RedirectError(
                f"iptables cannot list table {table} for {family}: something else than iptables"
                " has put things of its own into it"
            )
    return parse(listing)


def legacy_in_use() -> bool:
    """Whether iptables-legacy has tables in the calling thread's namespace.

    Raises `RedirectError`.
    """
    with translated("look for iptables' tables"):
        return any(map(_legacy_tables, _LEGACY_NAMES.values()))


def _tables(variant: Variant) -> Mapping[Family, frozenset[str]]:
    """In which tables something of ours may stand; a family without any is left out."""
    with translated("look for iptables' tables"):
        if variant is Variant.NFT:
            found = _nft_tables()
        else:
            found = {family: _legacy_tables(path) for family, path in _LEGACY_NAMES.items()}
    ours = {family: tables.intersection(Table) for family, tables in found.items()}
    return {family: tables for family, tables in ours.items() if tables}


def _legacy_tables(path: str) -> frozenset[str]:
    try:
        with open(path, encoding="ascii") as names:
            return frozenset(names.read().split())
    except FileNotFoundError:  # a kernel without iptables-legacy
        return frozenset()
    except PermissionError as error:
        # The file belongs to the user namespace of the network namespace, with mode 0440.
        raise RedirectError(
            f"cannot read {path} of a pod in a user namespace of its own (hostUsers: false):"
            " CAP_DAC_READ_SEARCH is missing"
        ) from error


def _nft_tables() -> dict[Family, frozenset[str]]:
    found: dict[Family, set[str]] = {family: set() for family in Family}
    try:
        with Netlink(_NETLINK_NETFILTER) as netlink:
            chains = netlink.dump(_GETCHAIN, _ANY_FAMILY)
    except OSError as error:
        if error.errno not in _NO_NFTABLES:
            raise
        chains = []
    for chain in chains:
        family = _FAMILIES.get(chain[0])
        described = dict(attributes(chain[_HEADER_SIZE:]))
        if family and _text(described[_CHAIN_NAME]) in CHAINS.values():
            found[family].add(_text(described[_CHAIN_TABLE]))
    return {family: frozenset(tables) for family, tables in found.items()}


def _text(payload: bytes) -> str:
    return payload.rstrip(b"\0").decode(errors="replace")
