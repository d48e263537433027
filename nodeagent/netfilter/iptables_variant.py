"""Which variant of iptables this node uses, found out once and remembered (L7)."""

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

    The last is remembered there. Works in the network namespace of the thread that
    calls it, which has to be the host's. Raises `RulesError` where the host's rules
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
    """Whether others have legacy rules in the calling thread's namespace: kube-proxy, the CNI.

    A table alone says nothing: somebody's look has made it. Our own rules say nothing
    either, or a choice would confirm itself. IPv6's rules are no reason to stop where they
    cannot be listed. Raises `RulesError`.
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
    # A half-written file would be asked again at the next start.
    with open(f"{path}.new", "w", encoding="ascii") as file:
        file.write(f"{variant}\n")
    os.replace(f"{path}.new", path)
