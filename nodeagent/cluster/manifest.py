"""One file of Kubernetes manifests, read into pods and namespaces.

Whoever may write the file may enroll pods, but a slip in it must not take the agent
down: size, depth and number are bounded, and every error names document and field.
"""

import json
import re
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

import yaml

from nodeagent import validators as checks
from nodeagent.mesh.pod import (
    LONGEST_ANNOTATION,
    RELEVANT_ANNOTATIONS,
    IPAddress,
    Namespace,
    Pod,
    PodUID,
)

MAX_SIZE = 1 << 20
"""Bytes in a file; a thousand pods take half of it."""
_MAX_OBJECTS = 4096
_MAX_DEPTH = 64
_UIDS = uuid.UUID("7f1f3c0e-2a0b-5d2e-9d55-0a6a5c9b7b11")
_UID = re.compile(r"[A-Za-z0-9._-]{1,63}")


class ManifestError(ValueError):
    """A file cannot be used as it is; the text names document and field."""


Identity = tuple[str, str]
"""What only one object can have: the words "pod" and its name, say, or "UID" and its UID."""


@dataclass(frozen=True, slots=True)
class Document:
    """A pod or namespace, with the number of its document in the file, from 1."""

    number: int
    value: Pod | Namespace
    identities: tuple[Identity, ...]


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a file says."""

    documents: tuple[Document, ...]
    ignored: tuple[str, ...]
    """Kinds that the agent has no use for."""


def parse(data: bytes) -> Manifest:
    """Read a file's content, YAML or JSON. Raises ``ManifestError``."""
    documents: list[Document] = []
    ignored: list[str] = []
    for number, content in _contents(data):
        for item in _objects(number, content):
            kind = item.get("kind").string()
            if len(documents) + len(ignored) >= _MAX_OBJECTS:
                raise item.error(f"the file has more than {_MAX_OBJECTS} objects")
            if kind == "Pod" and _is_core(item):
                pod = _pod(item)
                documents.append(Document(number, pod, (("pod", str(pod)), ("UID", pod.uid))))
            elif kind == "Namespace" and _is_core(item):
                namespace = _namespace(item)
                documents.append(Document(number, namespace, (("namespace", namespace.name),)))
            else:
                ignored.append(kind)
    return Manifest(tuple(documents), tuple(ignored))


def derived_uid(namespace: str, name: str) -> PodUID:
    """The UID of a pod that was given none: the same whichever file it is in."""
    return PodUID(str(uuid.uuid5(_UIDS, f"{namespace}/{name}")))


class _Loader(yaml.CSafeLoader):
    """Leaves a date as text, as Kubernetes does; PyYAML would make it a date."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own class attribute
        first: [(tag, regexp) for tag, regexp in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.CSafeLoader.yaml_implicit_resolvers.items()
    }


@dataclass(frozen=True, slots=True)
class _Field:
    """A value in a document, with its path, which errors name."""

    document: int
    path: str
    value: Any

    def error(self, reason: str) -> ManifestError:
        where = f"document {self.document}"
        return ManifestError(
            f"{where}: {self.path}: {reason}" if self.path else f"{where}: {reason}"
        )

    def get(self, key: str) -> "_Field":
        path = f"{self.path}.{key}" if self.path else key
        return _Field(self.document, path, self.mapping().get(key))

    def mapping(self) -> Mapping[str, Any]:
        if self.value is None:
            return {}
        if not isinstance(self.value, dict):
            raise self.error("a mapping is expected")
        return self.value

    def items(self) -> "Iterator[_Field]":
        if self.value is not None and not isinstance(self.value, list):
            raise self.error("a list is expected")
        for index, value in enumerate(self.value or ()):
            yield _Field(self.document, f"{self.path}[{index}]", value)

    def string(self, default: str | None = None) -> str:
        value = default if self.value is None else self.value
        if value is None:
            raise self.error("is missing")
        if not isinstance(value, str):
            raise self.error(f"a string is expected, not {_shown(value)}; quote it")
        # JSON can hold half of a surrogate pair, which cannot be written as UTF-8.
        if not value.isascii() and any("\ud800" <= each <= "\udfff" for each in value):
            raise self.error("it has half a character")
        return value

    def name(self, limit: int, default: str | None = None) -> str:
        text = self.string(default)
        try:
            return checks.name(limit)(text)
        except ValueError as error:
            raise self.error(f"{_shown(text)} is not a name: {error}") from None

    def strings(self) -> dict[str, str]:
        for key in self.mapping():
            if not isinstance(key, str):
                raise self.error(f"a key is a string, not {_shown(key)}; quote it")
            if not key.isascii():
                raise self.error(f"{_shown(key)} is not a name: ASCII is expected")
        return {key: self.get(key).string() for key in self.mapping()}

    def boolean(self) -> bool:
        if self.value is not None and not isinstance(self.value, bool):
            raise self.error(f"true or false is expected, not {_shown(self.value)}")
        return bool(self.value)

    def address(self) -> IPAddress:
        text = self.string()
        try:
            address = ip_address(text)
        except ValueError:
            raise self.error(f"{_shown(text)} is not an IP address") from None
        # Such an address is in every netns, and does not tell two apart (L10).
        if address.is_loopback or address.is_unspecified or address.is_multicast or "%" in text:
            raise self.error(f"{_shown(text)} is not an address that a pod can have")
        return address


def _pod(item: _Field) -> Pod:
    metadata, spec, status = item.get("metadata"), item.get("spec"), item.get("status")
    name = metadata.get("name").name(253)
    namespace = metadata.get("namespace").name(63, "default")
    uid = metadata.get("uid")
    if not _UID.fullmatch(text := uid.string(derived_uid(namespace, name))):
        raise uid.error(f"{_shown(text)} is not a UID: 1 to 63 of A-Z, a-z, 0-9, '.', '_', '-'")
    annotations = metadata.get("annotations").strings()
    return Pod(
        uid=PodUID(text),
        name=name,
        namespace=namespace,
        labels=metadata.get("labels").strings(),
        annotations={
            key: annotations[key][:LONGEST_ANNOTATION]
            for key in RELEVANT_ANNOTATIONS & annotations.keys()
        },
        addresses=_addresses(status),
        service_account=spec.get("serviceAccountName").name(253, "default"),
        host_network=spec.get("hostNetwork").boolean(),
        phase=status.get("phase").string("Running"),
    )


def _addresses(status: _Field) -> tuple[IPAddress, ...]:
    several, one = status.get("podIPs"), status.get("podIP")
    if several.value is None:
        return () if one.value is None else (one.address(),)
    return tuple(item.get("ip").address() for item in several.items())


def _namespace(item: _Field) -> Namespace:
    metadata = item.get("metadata")
    return Namespace(metadata.get("name").name(63), metadata.get("labels").strings())


def _is_core(item: _Field) -> bool:
    return item.get("apiVersion").string("v1") == "v1"


def _objects(number: int, content: object) -> Iterator[_Field]:
    top = _Field(number, "", content)
    if content is None:
        return
    if _is_core(top) and top.get("kind").string() == "List":
        yield from top.get("items").items()
    else:
        yield top


def _contents(data: bytes) -> Iterator[tuple[int, object]]:
    if not data:
        # Someone is about to write it, or a full disk cut it short.
        raise ManifestError("the file is empty")
    if len(data) > MAX_SIZE:
        raise ManifestError(f"the file has more than {MAX_SIZE} bytes")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ManifestError(f"byte {error.start} is not UTF-8") from None
    # YAML 1.1 is not quite a superset of JSON: tabs, \/ and long keys differ.
    if text.lstrip().startswith("{"):
        try:
            return iter([(1, json.loads(text))])
        except (ValueError, RecursionError):
            pass  # a flow mapping in YAML starts like that too; its reader has the last word
    _check_shape(text)
    return _yaml(text)


def _yaml(text: str) -> Iterator[tuple[int, object]]:
    loader = _Loader(text)
    number = 1
    try:
        while loader.check_data():  # type: ignore[no-untyped-call]
            yield number, loader.get_data()
            number += 1
    except yaml.YAMLError as error:
        raise ManifestError(f"document {number}: {_reason(error)}") from None
    except (ValueError, LookupError, AttributeError, TypeError):
        # A tag such as !!int before something else.
        raise ManifestError(f"document {number}: a value does not fit its tag") from None
    finally:
        loader.dispose()


def _check_shape(text: str) -> None:
    # PyYAML's composer recurses in C and overflows the stack on deep nesting;
    # aliases make small files large or endless. The parser alone does neither.
    number, depth = 0, 0
    try:
        for event in yaml.parse(text, Loader=yaml.CSafeLoader):
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
            elif isinstance(event, yaml.DocumentStartEvent):
                number += 1
            elif isinstance(event, yaml.AliasEvent):
                raise ManifestError(f"document {number}: aliases (*name) are not supported")
            if depth > _MAX_DEPTH:
                raise ManifestError(f"document {number}: it is more than {_MAX_DEPTH} levels deep")
    except yaml.YAMLError as error:
        raise ManifestError(f"document {number}: {_reason(error)}") from None


def _reason(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    return str(error).partition("\n")[0]


def _shown(value: object) -> str:
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else text[:80] + "…"
