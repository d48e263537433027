"""The backend that reads iptables' rules from the kernel and writes with the programs.

A family (IPv4, IPv6) is compared with what the same rules looked like in a scratch netns,
and where it differs, written with one run of ``iptables-restore``. Each table in the text is
a transaction, so a run that fails can leave the tables before the failing one written.
"""

from functools import lru_cache, partial

import structlog

from nodeagent.netfilter.errors import RulesError
from nodeagent.netfilter.iptables_programs import Variant, restore
from nodeagent.netfilter.iptables_tables import Chains, Tables, differences, read_tables
from nodeagent.netfilter.rule import Family
from nodeagent.netfilter.scratch import in_scratch_netns
from nodeagent.redirect.iptables_provenance import conflicts, proven
from nodeagent.redirect.iptables_rules import CHAINS, render, render_removal
from nodeagent.redirect.rules import RedirectSpec

log = structlog.get_logger()

_ADDRESSES = "/proc/thread-self/net/if_inet6"
"""A line for each IPv6 address in the thread's netns; absent without IPv6."""
_SCOPE_COLUMN, _GLOBAL = 3, "00"


def read(variant: Variant, *, making: bool = False) -> Tables:
    """Read the chains with our names in the calling thread's netns, see `read_tables`."""
    return read_tables(variant, CHAINS, making=making)


def reference(variant: Variant, spec: RedirectSpec, family: Family) -> Chains:
    """What `read` gives in one family where `spec` is true and nothing else was done.

    Found out by making these rules in a netns that exists only for this call, because each
    version of the programs has its own notation. Of interface lists there are as many as
    tenants write: who has one does not take the place of others' rules in the cache. Raises
    `RulesError`.
    """
    found_out = _found_out_for_lists if spec.reroute_interfaces else _found_out
    return found_out(variant, spec, family)


def _find_out(variant: Variant, spec: RedirectSpec, family: Family) -> Chains:
    def done() -> Chains:
        if text := render(spec, family):
            restore(variant, family, text)
        return read(variant).get(family, {})

    return in_scratch_netns(done)


_found_out = lru_cache(maxsize=None)(_find_out)
"""Without a bound: what is left of a spec without its list is a few yes and no."""
_found_out_for_lists = lru_cache(maxsize=64)(_find_out)


class IptablesBackend:
    """See `nodeagent.redirect.backend.Backend`. A call runs at most one write per family.

    iptables' built-in tables that a write has made are left, empty: others may use them by
    now, and legacy ones cannot be removed at all. Where IPv6 cannot be redirected, because
    ip6tables or its part of the kernel is missing, IPv4 is redirected all the same. Then
    `ensure` fails for a pod with an IPv6 address, and succeeds for one without.
    """

    def __init__(self, variant: Variant, *, chosen: bool = True) -> None:
        """Take the programs of `variant`; not `chosen`: only to remove what it has left."""
        self._variant = variant
        self._read = partial(read, variant, making=chosen)
        self.counted = variant is Variant.NFT

    def __str__(self) -> str:
        return f"iptables-{self._variant}"

    def inspect(self, spec: RedirectSpec) -> tuple[str, ...]:
        """See `Backend`."""
        have = self._read()
        return tuple(
            f"{family} {what}"
            for family in Family
            for what in self._inspect_family(spec, family, have)
        )

    def ensure(self, spec: RedirectSpec) -> tuple[str, ...]:
        """See `Backend`. Each table of each family is a transaction of its own."""
        have = self._read()
        if foreign := "; ".join(conflicts(self._variant, have)):
            raise RulesError(
                f"{foreign} of somebody else, a sidecar perhaps, is in the place of ours: take it"
                " out, or let NATIVE_NFTABLES write rules that do not meet it"
            )
        done: list[str] = []
        for family in Family:  # IPv4 first: it waits for nothing that IPv6 lacks
            try:
                if found := self._differences(spec, family, have):
                    text = render(spec, family, replacing=have.get(family))
                    restore(self._variant, family, text)
                    done += [f"{family} {what}" for what in found]
            except RulesError as error:
                if family is Family.V4 or _has_ipv6_address():
                    raise RulesError(f"{family} cannot be redirected: {error}") from error
                _warn_of_missing_ipv6(str(error))
        return tuple(done)

    def is_installed(self) -> bool:
        """See `Backend`."""
        return bool(proven(self._variant, self._read()))

    def remove(self) -> bool:
        """See `Backend`."""
        have = proven(self._variant, self._read())
        for family, chains in have.items():
            restore(self._variant, family, render_removal(chains))
        return bool(have)

    def _inspect_family(self, spec: RedirectSpec, family: Family, have: Tables) -> tuple[str, ...]:
        try:
            return self._differences(spec, family, have)
        except RulesError as error:
            if family is Family.V4:
                raise
            return (f"cannot be redirected: {error}",) if _has_ipv6_address() else ()

    def _differences(self, spec: RedirectSpec, family: Family, have: Tables) -> tuple[str, ...]:
        # A pod that was just made has nothing of ours: nothing to compare with.
        if not have:
            return ("rules are missing",) if family in spec.families else ()
        want = reference(self._variant, spec, family)
        return tuple(differences(have.get(family, {}), want, CHAINS))


def _has_ipv6_address() -> bool:
    """Whether the thread's netns has an IPv6 address that others can reach."""
    try:
        with open(_ADDRESSES, encoding="ascii") as addresses:
            return any(line.split()[_SCOPE_COLUMN] == _GLOBAL for line in addresses)
    except FileNotFoundError:  # a kernel without IPv6
        return False


@lru_cache(maxsize=16)
def _warn_of_missing_ipv6(reason: str) -> None:
    log.warning(
        "IPv6 is not redirected, and pods with an IPv6 address will fail; set AMBIENT_IPV6=false"
        " if there are none",
        reason=reason,
    )
