"""What a pod's annotations change about its redirection.

Whoever may create a pod writes these annotations. So their values are cut and checked
before anything is made of them, and a value that makes no sense is ignored with a warning.
"""

import re
from dataclasses import dataclass
from functools import lru_cache

from nodeagent.mesh.gobool import parse_bool
from nodeagent.mesh.pod import (
    BYPASS_INBOUND_CAPTURE,
    DNS_CAPTURE,
    LONGEST_ANNOTATION,
    REROUTE_VIRTUAL_INTERFACES,
    Pod,
)

MAX_INTERFACES = 64
"""More than any VM has; each becomes two rules that every packet passes."""

# Narrower than the kernel's dev_valid_name: the name becomes part of a rule, in which nft
# takes `*` and iptables `+` for a wildcard, and neither can escape a quote.
_INTERFACE = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9_.@=-]{1,15}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Overrides:
    """The redirection of one pod, as far as the pod decides it."""

    bypass_inbound: bool
    """Inbound traffic is not captured, outbound is."""
    dns_capture: bool
    reroute_interfaces: tuple[str, ...]


def pod_overrides(pod: Pod, *, dns_capture: bool) -> tuple[Overrides, tuple[str, ...]]:
    """Read the annotations of `pod` over the agent's own `dns_capture`.

    Returns the result and one warning for each value that was ignored: a
    tenant's typing error must not keep a pod out of the mesh.
    """
    warnings: list[str] = []

    def boolean(annotation: str, default: bool) -> bool:
        text = pod.annotations.get(annotation)
        if text is None:
            return default
        try:
            return parse_bool(text)
        except ValueError as error:
            warnings.append(f"pod {pod}: annotation {annotation}: {text[:32]!r}: {error}; ignored")
            return default

    overrides = Overrides(
        bypass_inbound=boolean(BYPASS_INBOUND_CAPTURE, default=False),
        dns_capture=boolean(DNS_CAPTURE, default=dns_capture),
        reroute_interfaces=_interfaces(pod, warnings),
    )
    return overrides, tuple(warnings)


def is_interface(name: str) -> bool:
    """Whether `name` can be written in a rule, and means exactly one interface there."""
    return _INTERFACE.fullmatch(name) is not None


def _interfaces(pod: Pod, warnings: list[str]) -> tuple[str, ...]:
    names, complaints = _interface_names(pod.annotations.get(REROUTE_VIRTUAL_INTERFACES, ""))
    warnings += (f"pod {pod}: annotation {REROUTE_VIRTUAL_INTERFACES}: {c}" for c in complaints)
    return names


@lru_cache(maxsize=256)
def _interface_names(text: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The interfaces that `text` names, and what is wrong with it (L34: cut, then read once)."""
    complaints: list[str] = []
    kept = text[:LONGEST_ANNOTATION]
    if len(text) >= LONGEST_ANNOTATION:
        kept = kept.rpartition(",")[0]  # the last name may have lost its end
    names = dict.fromkeys(part for part in map(str.strip, kept.split(",")) if part)
    good = [name for name in names if is_interface(name) and name != "lo"]
    bad = [name for name in names if name == "lo" or not is_interface(name)]
    if bad:
        shown = [name[:32] for name in bad[:3]]
        complaints.append(f"not names of virtual interfaces: {shown!r}; ignored")
    if len(good) > MAX_INTERFACES:
        complaints.append(f"only the first {MAX_INTERFACES} interfaces are used")
    elif len(text) >= LONGEST_ANNOTATION:
        complaints.append(f"only its first {LONGEST_ANNOTATION} characters are read")
    return tuple(good[:MAX_INTERFACES]), tuple(complaints)
