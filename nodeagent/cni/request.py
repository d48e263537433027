"""One call of the plugin, as the binary forwards it: the environment, and standard input.

Everything here is bounded in length and checked against a pattern before it is used as a path,
as part of a request to the API server, or in a message.
"""

import os
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from nodeagent.cni.configuration import Configuration
from nodeagent.cni.errors import CniError, Code

_CONTAINER_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,255}")
_INTERFACE = re.compile(r"[^/:\s\0]{1,15}")  # IFNAMSIZ, with its end
_NETNS = re.compile(r"/[^\0-\x1f\x7f\ud800-\udfff]{0,4094}")  # PATH_MAX; of UTF-8, for messages
_KUBERNETES_NAME = re.compile(r"[a-z0-9]([a-z0-9.\-]{0,251}[a-z0-9])?")
_LONGEST_ENVIRONMENT = 64 * 1024
"""Bytes, as in the plugin's binary."""
_MOST_VARIABLES = 256
"""The binary sends variables that begin with ``CNI_``: CNI itself has six."""

_UID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,127}")


class Command(StrEnum):
    """The commands of the CNI specification."""

    ADD = "ADD"
    DEL = "DEL"
    CHECK = "CHECK"
    GC = "GC"
    STATUS = "STATUS"
    VERSION = "VERSION"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """One interface of one container in one network: what ADD makes and DEL takes down."""

    network: str
    container_id: str
    interface: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PodName:
    """The pod that a request is about, as the runtime names it."""

    namespace: str
    name: str
    uid: str | None
    """None: older runtimes do not send it. A static pod's is the hash of its manifest
    (`Pod.sandbox_uid`)."""

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Environment:
    """The variables of one call, checked where they are asked for."""

    variables: dict[str, str]

    @property
    def command(self) -> Command:
        """The command. Raises ``CniError``, as every property here does."""
        try:
            return Command(self.variables.get("CNI_COMMAND", ""))
        except ValueError as error:
            raise _invalid(f"CNI_COMMAND is none of {', '.join(Command)}") from error

    @property
    def container_id(self) -> str:
        """The container runtime's id of the sandbox."""
        return self._checked("CNI_CONTAINERID", _CONTAINER_ID)

    @property
    def interface(self) -> str:
        """Name of the interface inside the sandbox."""
        name = self._checked("CNI_IFNAME", _INTERFACE)
        if name in {".", ".."}:
            raise _invalid(f"CNI_IFNAME is {name}")
        return name

    @property
    def netns(self) -> str:
        """Path of the sandbox's netns on the host."""
        return self._checked("CNI_NETNS", _NETNS)

    @property
    def netns_if_any(self) -> str | None:
        """The same path, or None for a sandbox that has lost its netns already."""
        return self.netns if self.variables.get("CNI_NETNS") else None

    @property
    def pod(self) -> PodName | None:
        """The pod; None for a container that is no pod's, and cannot be in a mesh."""
        arguments = self._arguments()
        namespace, name = (arguments.get(f"K8S_POD_{key}") for key in ("NAMESPACE", "NAME"))
        if not namespace and not name:
            return None
        return pod_name(namespace, name, arguments.get("K8S_POD_UID"))

    def _arguments(self) -> dict[str, str]:
        found = {}
        for pair in filter(None, self.variables.get("CNI_ARGS", "").split(";")):
            key, equals, value = pair.partition("=")
            if not equals:
                raise _invalid("CNI_ARGS is not KEY=VALUE;KEY=VALUE…")
            found[key] = value
        return found

    def _checked(self, name: str, pattern: re.Pattern[str]) -> str:
        value = self.variables.get(name, "")
        if not pattern.fullmatch(value):
            raise _invalid(f"{name} is {'not valid' if value else 'missing'}")
        return value


@dataclass(frozen=True, slots=True)
class Request:
    """A call: the variables, and the network configuration, which is not parsed yet."""

    environment: Environment
    stdin: bytes

    @classmethod
    def parse(cls, body: bytes) -> Self:
        r"""Take apart ``CNI_X=value\0…\0`` and standard input. Raises ``CniError``."""
        variables: dict[str, str] = {}
        at = number = 0
        while not body.startswith(b"\0", at):
            end = body.find(b"\0", at, _LONGEST_ENVIRONMENT)
            if end < 0 or (number := number + 1) > _MOST_VARIABLES:
                raise _invalid(
                    "the request's environment has no end, or is larger than "
                    f"{_LONGEST_ENVIRONMENT} bytes or {_MOST_VARIABLES} variables"
                )
            name, equals, value = body[at:end].partition(b"=")
            if not equals:
                raise _invalid("a variable of the request has no value")
            variables[os.fsdecode(name)] = os.fsdecode(value)
            at = end + 1
        return cls(Environment(variables), body[at + 1 :])

    def attachment(self, configuration: Configuration) -> Attachment:
        """Return the attachment that the request is about. Raises ``CniError``."""
        return Attachment(
            network=configuration.name,
            container_id=self.environment.container_id,
            interface=self.environment.interface,
        )


def pod_name(namespace: str | None, name: str | None, uid: str | None = None) -> PodName:
    """Make a `PodName` of strings that are fit for a request to the API server.

    Raises ``CniError``.
    """
    for kind, text, pattern in (
        ("namespace", namespace, _KUBERNETES_NAME),
        ("name", name, _KUBERNETES_NAME),
        ("UID", uid or "none", _UID),
    ):
        if not pattern.fullmatch(text or ""):
            raise _invalid(f"the pod's {kind} is {'not valid' if text else 'missing'}")
    return PodName(namespace=namespace or "", name=name or "", uid=uid or None)


def _invalid(message: str) -> CniError:
    return CniError(Code.INVALID_ENVIRONMENT, message)
