"""What the agent keeps of an object of the Kubernetes API.

Each function takes the parsed JSON of an object and returns the little that is used of it, so
that the rest is freed at once (L25). What is not in the shape that the API gives it is refused
with the name of the field.
"""

import sys
from collections.abc import Container, Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from nodeagent import validators as checks
from nodeagent.mesh.pod import (
    LONGEST_ANNOTATION,
    NETNS_PATH,
    RELEVANT_ANNOTATIONS,
    IPAddress,
    Namespace,
    Pod,
    PodUID,
)

# Only manifests in a folder, which the operator writes, may name the path of a netns.
_ANNOTATIONS = RELEVANT_ANNOTATIONS - {NETNS_PATH}

Raw = Mapping[str, Any]

_LONGEST_NAME = 253
_SHOWN = 80


class ProjectionError(ValueError):
    """An object does not have the shape that the API gives it; the text names the field."""


def pod_uid(raw: Raw) -> PodUID:
    """A pod's UID. Raises ``ProjectionError``."""
    return PodUID(_name(_map(raw, "metadata"), "uid"))


def name(raw: Raw) -> str:
    """An object's name. Raises ``ProjectionError``."""
    return _name(_map(raw, "metadata"), "name")


def deleting(raw: Raw) -> bool:
    """Whether an object was deleted, but still exists. Raises ``ProjectionError``."""
    return _map(raw, "metadata").get("deletionTimestamp") is not None


def node_of(raw: Raw) -> str:
    """The node that a pod is bound to, "" for none. Raises ``ProjectionError``."""
    return _text(_map(raw, "spec"), "nodeName", "")


def controller(raw: Raw, kind: str) -> str | None:
    """The name of the `kind` that controls an object, if any. Raises ``ProjectionError``."""
    for owner in _maps(_map(raw, "metadata"), "ownerReferences"):
        if owner.get("controller") is True and owner.get("kind") == kind:
            return _name(owner, "name")
    return None


def taints(raw: Raw) -> Sequence[Raw]:
    """The taints of a node. Raises ``ProjectionError``."""
    return _maps(_map(raw, "spec"), "taints")


def version(raw: Raw) -> str:
    """The version of an object, or of a list. Raises ``ProjectionError``."""
    return _name(_map(raw, "metadata"), "resourceVersion")


def version_of(raw: Any) -> str:
    """The resource version of an object or a list; "" where it has none."""
    try:
        return version(raw)
    except ProjectionError:
        return ""


def version_number(raw: Any) -> int:
    """The version of an object as a number: see `as_number`."""
    return as_number(version_of(raw))


def as_number(text: str) -> int:
    """A version as a number: of two states of an object the later has the greater one.

    The API reference has allowed that since Kubernetes 1.35, of etcd's revisions, which they
    are everywhere. 0 for anything else: then the watch and the lists are right, always.
    """
    return int(text) if text.isascii() and text.isdecimal() else 0


def pod(raw: Raw, *, labels: Container[str] | None = None) -> Pod:
    """A pod as the agent knows it, with those of its labels whose keys are among `labels`.

    Without `labels` it has them all. Raises ``ProjectionError``.
    """
    metadata, spec, status = _map(raw, "metadata"), _map(raw, "spec"), _map(raw, "status")
    annotations = _map(metadata, "annotations")
    return Pod(
        uid=pod_uid(raw),
        name=_name(metadata, "name"),
        namespace=sys.intern(_name(metadata, "namespace")),
        labels=_labels(metadata, labels),
        annotations={
            key: _text(annotations, key)[:LONGEST_ANNOTATION]
            for key in _ANNOTATIONS & annotations.keys()
        },
        addresses=_addresses(status),
        service_account=sys.intern(_text(spec, "serviceAccountName", "default")),
        host_network=spec.get("hostNetwork") is True,
        phase=sys.intern(_text(status, "phase", "Pending")),
        deleting=deleting(raw),
    )


def namespace(raw: Raw, *, labels: Container[str] | None = None) -> Namespace:
    """A namespace, of which only name and labels count; see `pod`. Raises ``ProjectionError``."""
    return Namespace(sys.intern(name(raw)), _labels(_map(raw, "metadata"), labels))


def _addresses(status: Raw) -> tuple[IPAddress, ...]:
    several = _maps(status, "podIPs")
    texts = [_text(one, "ip") for one in several] if several else [_text(status, "podIP", "")]
    return tuple(map(_address, filter(None, texts)))


def _address(text: str) -> IPAddress:
    try:
        # Loopback addresses and the like are in every netns, and do not tell two apart (L10).
        if ":" in text:
            return checks.address(IPv6Address)(text)
        return checks.address(IPv4Address)(text)
    except ValueError:
        raise ProjectionError(f"podIPs: {text[:80]!r} is not an address of a pod") from None


def _map(raw: Raw, key: str) -> Raw:
    value = raw.get(key) if isinstance(raw, dict) else None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ProjectionError(f"{key}: a mapping is expected")
    return value


def _maps(raw: Raw, key: str) -> list[Raw]:
    values = raw.get(key)
    if values is None:
        return []
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        raise ProjectionError(f"{key}: a list of mappings is expected")
    return values


def _text(raw: Raw, key: str, default: str | None = None) -> str:
    value = raw.get(key) if isinstance(raw, dict) else None
    value = default if value is None else value
    # JSON can hold half of a surrogate pair, which cannot be written as UTF-8.
    if not isinstance(value, str) or (not value.isascii() and _is_half(value)):
        raise ProjectionError(f"{key[:_SHOWN]}: a string is expected")
    return value


def _labels(metadata: Raw, wanted: Container[str] | None) -> dict[str, str]:
    found = _map(metadata, "labels")
    # Thousands of objects have few different labels, so each text is kept once.
    kept = {
        sys.intern(key): sys.intern(_text(found, key))
        for key in found
        if wanted is None or key in wanted
    }
    if not all(map(str.isascii, kept)):
        raise ProjectionError("labels: names in ASCII are expected")
    return kept


def _name(raw: Raw, key: str) -> str:
    text = _text(raw, key)
    if not 0 < len(text) <= _LONGEST_NAME:
        raise ProjectionError(f"{key}: a name is expected")
    return text


def _is_half(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)
