"""What a pod's annotations change about its redirection."""

import re
from dataclasses import dataclass

from nodeagent.mesh.gobool import parse_bool
from nodeagent.mesh.pod import (
    BYPASS_INBOUND_CAPTURE,
    DNS_CAPTURE,
    REROUTE_VIRTUAL_INTERFACES,
    Pod,
)

MAX_INTERFACES = 64
"""More than any VM has; each becomes two rules on every packet's way."""

# Narrower than the kernel's dev_valid_name: the text ends in a rule, where nft
# reads `*` and iptables `+` as a wildcard, and neither can escape a quote.
_INTERFACE = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9_.@=-]{1,15}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Overrides:
    """The redirection of one pod, as far as the pod decides it."""

    ingress: bool
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
        ingress=boolean(BYPASS_INBOUND_CAPTURE, default=False),
        dns_capture=boolean(DNS_CAPTURE, default=dns_capture),
        reroute_interfaces=_interfaces(pod, warnings),
    )
    return overrides, tuple(warnings)


def is_interface(name: str) -> bool:
    """Whether `name` can stand in a rule and mean one interface, and nothing else."""
    return _INTERFACE.fullmatch(name) is not None


def _interfaces(pod: Pod, warnings: list[str]) -> tuple[str, ...]:
    parts = (
        part.strip() for part in pod.annotations.get(REROUTE_VIRTUAL_INTERFACES, "").split(",")
    )
    names = dict.fromkeys(part for part in parts if part)
    good = [name for name in names if is_interface(name) and name != "lo"]
    bad = [name[:32] for name in names if name not in good]
    where = f"pod {pod}: annotation {REROUTE_VIRTUAL_INTERFACES}"
    if bad:
        warnings.append(f"{where}: not names of virtual interfaces: {bad[:3]!r}; ignored")
    if len(good) > MAX_INTERFACES:
        warnings.append(
            f"{where}: {len(good)} interfaces; only the first {MAX_INTERFACES} are used"
        )
    return tuple(good[:MAX_INTERFACES])
