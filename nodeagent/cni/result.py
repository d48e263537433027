"""The texts that the plugin answers with: results, errors, and the supported versions."""

import json
from ipaddress import ip_interface
from typing import Any

from nodeagent.cni.configuration import Configuration
from nodeagent.cni.errors import CniError, Code
from nodeagent.cni.json_text import Part, members
from nodeagent.cni.versions import NEWEST, VERSIONS
from nodeagent.mesh.pod import IPAddress

MOST_ADDRESSES = 64
"""Of a result; far more than an attachment has."""
_LONGEST_ADDRESS = 49
"""Characters of an IPv6 address that ends as an IPv4 one, with a prefix length."""


def passed_on(configuration: Configuration) -> str:
    """Return the previous plugin's result as it came; an empty result where there is none.

    The result has the version of the configuration: libcni converts a previous result before
    it calls a plugin. Raises ``CniError``.
    """
    version = json.dumps(configuration.version)
    previous = configuration.previous
    if previous is None:
        return f'{{"cniVersion": {version}}}'
    try:
        parts = members(previous.text)
    except ValueError as error:
        raise _invalid(f"prevResult is not an object, or too large: {error}") from error
    if "cniVersion" in parts and parts["cniVersion"].value == configuration.version:
        return previous.text
    texts = {name: part.text for name, part in parts.items()} | {"cniVersion": version}
    return "{" + ", ".join(f"{json.dumps(name)}: {text}" for name, text in texts.items()) + "}"


def addresses(previous: Part | None) -> tuple[IPAddress, ...]:
    """Return the addresses that the plugins before us gave. Raises ``CniError``."""
    result = previous.value if previous else {}
    if not isinstance(result, dict):
        raise _invalid("prevResult is not an object")
    entries = result.get("ips", [])
    if not isinstance(entries, list) or len(entries) > MOST_ADDRESSES:
        raise _invalid(f"prevResult.ips is not a list of at most {MOST_ADDRESSES}")
    return tuple(_address(entry) for entry in entries)


def failure(error: CniError, version: str) -> str:
    """Return the error as the runtime reads it."""
    body: dict[str, object] = {
        "cniVersion": version,
        "code": int(error.code),
        "msg": error.message,
    }
    if error.details:
        body["details"] = error.details
    return json.dumps(body)


def versions() -> str:
    """Return the answer to VERSION."""
    return json.dumps({"cniVersion": NEWEST, "supportedVersions": VERSIONS})


def plain_address(text: str) -> str:
    """Return `text` if it is short and has no zone. Raises ``ValueError``.

    ``ipaddress`` takes any text behind a ``%`` for the zone of an IPv6 address (``%eth0``), and
    keeps it.
    """
    if len(text) > _LONGEST_ADDRESS or "%" in text:
        raise ValueError(f"{text[:100]!r} is no address")
    return text


def _address(entry: Any) -> IPAddress:
    text = entry.get("address") if isinstance(entry, dict) else None
    if not isinstance(text, str):
        raise _invalid("an entry of prevResult.ips has no address")
    try:
        return ip_interface(plain_address(text)).ip
    except ValueError as error:
        shown = json.dumps(text[:100])
        raise _invalid(f"prevResult.ips: {shown} is no address") from error


def _invalid(message: str) -> CniError:
    return CniError(Code.INVALID_CONFIGURATION, message)
