"""The host's iptables chain that gives health probes their source address."""

import socket
from collections.abc import Hashable, Iterable, Mapping

from nodeagent.linux import syscalls as kernel
from nodeagent.linux.netlink import Netlink, attribute
from nodeagent.netfilter.errors import RedirectError, translated
from nodeagent.netfilter.iptables import FIRST
from nodeagent.netfilter.iptables_programs import Variant, restore, save
from nodeagent.netfilter.iptables_save import Chain, find_chains
from nodeagent.netfilter.layout import LAYOUT_MARK, LAYOUT_VERSION
from nodeagent.netfilter.rule import Family, Table
from nodeagent.probes.nft_rules import SETS, ProbeRules
from nodeagent.probes.nft_table import without_counters

CHAIN = "ISTIO_POSTRT"
"""In table nat of both families; the name is Istio's, too."""

_HOOK = "POSTROUTING"
_JUMP = f"-j {CHAIN}"

# linux/netfilter/nf_tables.h and nfnetlink.h
_NETLINK_NETFILTER = 12
_GETCHAIN = 10 << 8 | 4
_CHAIN_TABLE, _CHAIN_NAME = 1, 3
_GETRULE = 10 << 8 | 7
_RULE_TABLE, _RULE_CHAIN = 1, 2
_NUMBERS = {Family.V4: socket.AF_INET, Family.V6: socket.AF_INET6}
# They list the tables that were made in the thread's own network namespace.
_LEGACY_NAMES = {
    Family.V4: "/proc/thread-self/net/ip_tables_names",
    Family.V6: "/proc/thread-self/net/ip6_tables_names",
}
# linux/netfilter_ipv4/ip_tables.h and ip6_tables.h: struct ipt_getinfo
_LEGACY_GET_INFO = 64
_LEGACY_INFO_SIZE = 84
_LEGACY_LEVELS = {Family.V4: socket.IPPROTO_IP, Family.V6: socket.IPPROTO_IPV6}

ProbeChains = Mapping[Family, Chain[str]]
"""The chain as it stands in each family; a family without the chain is left out."""


def read_chains(variant: Variant, families: Iterable[Family] = Family) -> ProbeChains:
    """Read the chain in the calling thread's network namespace. Raises `RedirectError`."""
    return {
        family: chain
        for family in families
        # A listing is for those who know that there is something: it may make tables (L7).
        if _may_stand(variant, family) and (chain := parse_chain(save(variant, family)))
    }


def fingerprint(variant: Variant) -> Hashable:
    """What is another when somebody has changed the chain, or what stands before it.

    It costs 0.1 ms, however many rules others have elsewhere. With `Variant.NFT` these
    rules themselves, as the kernel has them. With `Variant.LEGACY` number and size of all
    rules of the table: a rule that is replaced by one of the same size is not seen.
    Raises `RedirectError`.
    """
    if variant is Variant.LEGACY:
        return tuple(map(_legacy_sizes, Family))
    return tuple(_rules_in(family, chain) for family in Family for chain in (_HOOK, CHAIN))


def write_chain(
    variant: Variant, family: Family, rules: ProbeRules, standing: Chain[str] | None
) -> None:
    """Put the chain in place of what stands, and first, in one transaction.

    Raises `RedirectError`; nothing has changed then.
    """
    try:
        restore(variant, family, render_chain(rules, family, standing))
    except RedirectError as error:
        raise RedirectError(
            f"{error} (needs the matches owner and set and the target SNAT, in the kernel"
            " CONFIG_NETFILTER_XT_MATCH_OWNER, CONFIG_NETFILTER_XT_SET, CONFIG_NETFILTER_XT_NAT)"
        ) from error


def remove_chains(variant: Variant, standing: ProbeChains) -> None:
    """Remove what `read_chains` found. Raises `RedirectError`."""
    for family, chain in standing.items():
        restore(variant, family, render_chain_removal(chain))


def render_chain(rules: ProbeRules, family: Family, standing: Chain[str] | None) -> str:
    """Return the input for ``iptables-restore --noflush``; `standing` is what it replaces."""
    version = family.value.version
    source = {4: rules.probe_v4, 6: rules.probe_v6}[version]
    jumps = standing.jumps if standing else ()
    # A jump that stands once and first is not touched: no probe misses it.
    place = [] if jumps == FIRST else [*_without_jumps(jumps), f"-I {_HOOK} 1 {_JUMP}"]
    return _transaction(
        f":{CHAIN} - [0:0]",  # made, or emptied where it stands
        *place,
        f'-A {CHAIN} -m comment --comment "{LAYOUT_MARK}{LAYOUT_VERSION}"',
        # A socket exists for what a process here sends: kubelet, whatever it is
        # called, and not what is forwarded (L21).
        f"-A {CHAIN} -p tcp -m owner --socket-exists"
        f" -m set --match-set {SETS[version]} dst -j SNAT --to-source {source}",
    )


def render_chain_removal(standing: Chain[str]) -> str:
    """Return the input for ``iptables-restore --noflush`` that removes `standing`."""
    gone = [] if standing.held else [f"-X {CHAIN}"]
    return _transaction(*_without_jumps(standing.jumps), f"-F {CHAIN}", *gone)


def parse_chain(listing: str) -> Chain[str] | None:
    """Find the chain in the output of ``iptables-save``."""
    return find_chains(listing, {_HOOK: CHAIN}).get(Table.NAT, {}).get(CHAIN)


def _without_jumps(jumps: tuple[int, ...]) -> list[str]:
    return [f"-D {_HOOK} {_JUMP}"] * len(jumps)


def _transaction(*lines: str) -> str:
    return "".join(f"{line}\n" for line in (f"*{Table.NAT}", *lines, "COMMIT"))


def _may_stand(variant: Variant, family: Family) -> bool:
    with translated("look for iptables' chains"):
        if variant is Variant.LEGACY:
            return _has_legacy_nat(_LEGACY_NAMES[family])
        return _has_nft_chain(family)


def _has_legacy_nat(path: str) -> bool:
    try:
        with open(path, encoding="ascii") as names:
            return Table.NAT in names.read().split()
    except FileNotFoundError:  # a kernel without iptables-legacy
        return False


def _legacy_sizes(family: Family) -> bytes | None:
    """The header of the kernel's table, in which every change of its length shows.

    It is asked on an ordinary socket, which needs no NET_RAW, and only where the table
    was made: the question would make it (L7).
    """
    with translated("look for iptables' chains"):
        if not _has_legacy_nat(_LEGACY_NAMES[family]):
            return None
        with socket.socket(_NUMBERS[family], socket.SOCK_DGRAM) as asking:
            question = Table.NAT.encode().ljust(_LEGACY_INFO_SIZE, b"\0")
            return kernel.ask_socket(
                asking.fileno(), _LEGACY_LEVELS[family], _LEGACY_GET_INFO, question
            )


def _rules_in(family: Family, chain: str) -> tuple[bytes, ...]:
    body = (
        bytes([_NUMBERS[family], 0, 0, 0])
        + attribute(_RULE_TABLE, f"{Table.NAT}\0".encode())
        + attribute(_RULE_CHAIN, f"{chain}\0".encode())
    )
    with translated("look for iptables' chains"), Netlink(_NETLINK_NETFILTER) as netlink:
        try:
            answers = netlink.dump(_GETRULE, body)
        except FileNotFoundError:
            return ()
    return tuple(map(without_counters, answers))


def _has_nft_chain(family: Family) -> bool:
    body = (
        bytes([_NUMBERS[family], 0, 0, 0])
        + attribute(_CHAIN_TABLE, f"{Table.NAT}\0".encode())
        + attribute(_CHAIN_NAME, f"{CHAIN}\0".encode())
    )
    with Netlink(_NETLINK_NETFILTER) as netlink:
        try:
            netlink.request(_GETCHAIN, 0, body)
        except FileNotFoundError:
            return False
    return True
