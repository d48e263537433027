"""The backend that writes through the iptables programs."""

from functools import lru_cache, partial

import structlog

from nodeagent.netfilter.errors import RulesError
from nodeagent.netfilter.iptables_programs import Variant, restore
from nodeagent.netfilter.rule import Family
from nodeagent.redirect.iptables_provenance import conflicts, proven
from nodeagent.redirect.iptables_rules import render, render_removal
from nodeagent.redirect.iptables_state import Tables, differences, read, reference
from nodeagent.redirect.rules import RedirectSpec

log = structlog.get_logger()

_ADDRESSES = "/proc/thread-self/net/if_inet6"
"""A line for each IPv6 address in the thread's network namespace; absent without IPv6."""
_SCOPE_COLUMN, _GLOBAL = 3, "00"


class IptablesBackend:
    """See `nodeagent.redirect.backend.Backend`. At most one write per family.

    Tables of the kernel's own that a write has made stay, empty: others may have come to
    use them, and legacy ones cannot be removed at all. Where IPv6 cannot be redirected,
    because ip6tables or its part of the kernel is missing, IPv4 is all the same; a pod that
    has an IPv6 address fails, and one without does not need it.
    """

    def __init__(self, variant: Variant, *, chosen: bool = True) -> None:
        """Take the programs of `variant`; if not `chosen`, only for what they have left."""
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
        """See `Backend`. Each table of each family is a transaction; a family is written whole."""
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

    def stands(self) -> bool:
        """See `Backend`."""
        return bool(proven(self._variant, self._read()))

    def remove(self) -> bool:
        """See `Backend`."""
        have = proven(self._variant, self._read())
        for family, standing in have.items():
            restore(self._variant, family, render_removal(standing))
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
        return tuple(differences(have.get(family, {}), want))


def _has_ipv6_address() -> bool:
    """Whether the thread's network namespace has an address that others can reach."""
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
