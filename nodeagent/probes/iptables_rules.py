"""The host's iptables chain that gives health probes their source address.

It is called ISTIO_POSTRT, stands in table nat of both families, and the first rule of
POSTROUTING jumps to it. The chain is read from the listing of ``iptables-save`` and written
by ``iptables-restore``, in one transaction for each family.
"""

from collections.abc import Hashable, Iterable, Mapping

from nodeagent.linux.netlink import Netlink
from nodeagent.netfilter.errors import RulesError, wrap_oserror
from nodeagent.netfilter.iptables import FIRST
from nodeagent.netfilter.iptables_legacy import table_info, table_names
from nodeagent.netfilter.iptables_programs import Variant, restore, save
from nodeagent.netfilter.iptables_save import Chain, find_chains
from nodeagent.netfilter.layout import LAYOUT_COMMENT
from nodeagent.netfilter.nfnetlink import NETLINK_NETFILTER
from nodeagent.netfilter.nft_state import count_uses, read_chain
from nodeagent.netfilter.rule import Family, Table
from nodeagent.probes.rules import SETS, ProbeRules

CHAIN = "ISTIO_POSTRT"
"""In table nat of both families; the name is Istio's, too."""

_HOOK = "POSTROUTING"
_JUMP = f"-j {CHAIN}"

ProbeChains = Mapping[Family, Chain[str]]
"""The installed chain of each family; a family without the chain is left out."""


def read_chains(variant: Variant, families: Iterable[Family] = Family) -> ProbeChains:
    """Read the chain in the calling thread's network namespace. Raises `RulesError`."""
    return {
        family: chain
        for family in families
        # A listing may make tables, so it is made only where there is something (L7).
        if _may_be_installed(variant, family) and (chain := parse_chain(save(variant, family)))
    }


def fingerprint(variant: Variant) -> Hashable:
    """A value that is another one if somebody has changed the chain, or POSTROUTING.

    Takes 0.1 ms, however many rules others have elsewhere. With `Variant.NFT` the value has
    these chains' rules, as the kernel has them. With `Variant.LEGACY` it has number and size
    of all rules of the table: a rule that is replaced by one of the same size is not
    noticed. Raises `RulesError`.
    """
    if variant is Variant.LEGACY:
        # To ask about a table that was never made would make it (L7).
        return tuple(
            table_info(family, Table.NAT) if Table.NAT in table_names(family) else None
            for family in Family
        )
    return tuple(_rules_in(family, chain) for family in Family for chain in (_HOOK, CHAIN))


def write_chain(
    variant: Variant, family: Family, rules: ProbeRules, installed: Chain[str] | None
) -> None:
    """Replace the chain that is installed, with its jump first, in one transaction.

    Raises `RulesError`; nothing has changed in this family then.
    """
    try:
        restore(variant, family, render_chain(rules, family, installed))
    except RulesError as error:
        raise RulesError(
            f"{error} (needs the matches owner and set and the target SNAT, in the kernel"
            " CONFIG_NETFILTER_XT_MATCH_OWNER, CONFIG_NETFILTER_XT_SET, CONFIG_NETFILTER_XT_NAT)"
        ) from error


def remove_chains(variant: Variant, installed: ProbeChains) -> None:
    """Remove what `read_chains` found, one family after the other. Raises `RulesError`."""
    for family, chain in installed.items():
        restore(variant, family, render_chain_removal(chain))


def render_chain(rules: ProbeRules, family: Family, installed: Chain[str] | None) -> str:
    """Return the input for ``iptables-restore --noflush``; `installed` is what it replaces."""
    version = family.version
    source = {4: rules.probe_v4, 6: rules.probe_v6}[version]
    jumps = installed.jumps if installed else ()
    # A jump that is there once, as the first rule, is not touched: no probe misses it.
    place = [] if jumps == FIRST else [*_without_jumps(jumps), f"-I {_HOOK} 1 {_JUMP}"]
    return _transaction(
        f":{CHAIN} - [0:0]",  # made, or emptied if there is one
        *place,
        f'-A {CHAIN} -m comment --comment "{LAYOUT_COMMENT}"',
        # A socket exists for a packet that a process of the host sends: kubelet does,
        # whatever its process is called; a forwarded packet has none (L21).
        f"-A {CHAIN} -p tcp -m owner --socket-exists"
        f" -m set --match-set {SETS[version]} dst -j SNAT --to-source {source}",
    )


def render_chain_removal(installed: Chain[str]) -> str:
    """Return the input for ``iptables-restore --noflush`` that removes `installed`."""
    gone = [] if installed.held else [f"-X {CHAIN}"]
    return _transaction(*_without_jumps(installed.jumps), f"-F {CHAIN}", *gone)


def parse_chain(listing: str) -> Chain[str] | None:
    """Find the chain in the output of ``iptables-save``."""
    return find_chains(listing, {_HOOK: CHAIN}).get(Table.NAT, {}).get(CHAIN)


def _without_jumps(jumps: tuple[int, ...]) -> list[str]:
    return [f"-D {_HOOK} {_JUMP}"] * len(jumps)


def _transaction(*lines: str) -> str:
    return "".join(f"{line}\n" for line in (f"*{Table.NAT}", *lines, "COMMIT"))


def _may_be_installed(variant: Variant, family: Family) -> bool:
    if variant is Variant.LEGACY:
        return Table.NAT in table_names(family)
    with wrap_oserror("look for iptables' chains"), Netlink(NETLINK_NETFILTER) as netlink:
        return count_uses(netlink, family.number, Table.NAT, CHAIN) is not None


def _rules_in(family: Family, chain: str) -> tuple[bytes, ...]:
    with wrap_oserror("look for iptables' chains"), Netlink(NETLINK_NETFILTER) as netlink:
        try:
            return read_chain(netlink, family.number, Table.NAT, chain)
        except FileNotFoundError:
            return ()
