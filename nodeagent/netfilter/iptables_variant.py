"""Which variant of iptables this node uses (L7).

The agent writes its rules in the variant that the host's own rules are written in. What was
found is remembered in a file, so that a later start of the agent does not choose another.
"""

import os

import structlog

from nodeagent.netfilter.errors import RulesError
from nodeagent.netfilter.iptables_legacy import legacy_in_use
from nodeagent.netfilter.iptables_programs import Variant, save
from nodeagent.netfilter.iptables_save import statements
from nodeagent.netfilter.rule import Family

log = structlog.get_logger()

_FILE = "iptables-variant"


def find_variant(forced: Variant | None, directory: str) -> Variant:
    """Return `forced`; else what `directory` remembers; else what the host's rules are written in.

    The last is remembered there. Looks at the calling thread's netns, which has to be the
    host's. Raises `RulesError` where the host's rules
    cannot be listed, and ``OSError`` where nothing can be remembered.
    """
    if forced is not None:
        return forced
    path = os.path.join(directory, _FILE)
    remembered = _recall(path)
    if remembered is not None:
        return remembered
    found = Variant.LEGACY if host_uses_legacy() else Variant.NFT
    _remember(path, found)
    return found


def host_uses_legacy() -> bool:
    """Whether others, kube-proxy or the CNI, have legacy rules in the calling thread's netns.

    An empty table says nothing: listing can make one. Our own rules say nothing either, or
    a wrong choice would confirm itself. Where only IPv6's rules cannot be listed, that is
    logged and IPv4's decide. Raises `RulesError`.
    """
    for family in Family:
        try:
            if legacy_in_use(family) and has_rules_of_others(save(Variant.LEGACY, family)):
                return True
        except RulesError as error:
            if family is Family.V4:
                raise
            log.warning(
                "iptables-legacy's rules for IPv6 cannot be listed; on a node without IPv6 set"
                " AMBIENT_IPV6=false",
                reason=str(error),
            )
    return False


def has_rules_of_others(listing: str) -> bool:
    """Whether a listing has a rule or chain that neither this agent nor Istio's has made.

    A chain counts without rules: kubelet marks its own choice with an empty one.
    """
    return any(
        statement.startswith("-A ") or (statement.startswith(":") and " - [" in statement)
        for statement in statements(listing)
        if "ISTIO_" not in statement
    )


def _recall(path: str) -> Variant | None:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            text = file.read(64).strip()
    except FileNotFoundError:
        return None
    return next((variant for variant in Variant if variant == text), None)


def _remember(path: str, variant: Variant) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    # Written whole or not at all: the next start reads it.
    with open(f"{path}.new", "w", encoding="ascii") as file:
        file.write(f"{variant}\n")
    os.replace(f"{path}.new", path)
