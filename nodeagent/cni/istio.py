"""The request of Istio's own plugin, for nodes on which it is still in the chain."""

from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, Self

from nodeagent.cni.errors import CniError, Code
from nodeagent.cni.json_text import decoded
from nodeagent.cni.request import Environment, PodName, pod_name
from nodeagent.cni.result import MOST_ADDRESSES, plain_address
from nodeagent.mesh.pod import IPAddress


@dataclass(frozen=True, slots=True, kw_only=True)
class IstioRequest:
    """What Istio's plugin posts to ``/cmdadd``: an ADD without a container id."""

    pod: PodName
    netns: str
    addresses: tuple[IPAddress, ...]

    @classmethod
    def parse(cls, body: bytes) -> Self:
        """Read the request. Raises ``CniError``."""
        try:
            fields = decoded(body)
            netns, namespace, name = (
                _text(fields[key]) for key in ("Netns", "PodNamespace", "PodName")
            )
            entries = fields.get("IPs") or []
            addresses = tuple(
                ip_address(plain_address(_text(entry["Address"]["IP"])))
                for entry in _bounded(entries)
            )
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise CniError(
                Code.INVALID_JSON, "not a request of Istio's plugin", repr(error)[:200]
            ) from error
        return cls(
            pod=pod_name(namespace, name),
            netns=Environment({"CNI_NETNS": netns}).netns,
            addresses=addresses,
        )


def _bounded(entries: Any) -> Any:
    if len(entries) > MOST_ADDRESSES:
        raise ValueError(f"more than {MOST_ADDRESSES} addresses")
    return entries


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{type(value).__name__} instead of a string")
    return value
