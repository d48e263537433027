"""What a pod source tells the agent.

An event says how a pod or a namespace is now, not what has changed. A source may leave out
a state that a later one has replaced, and may repeat one.
"""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol

from nodeagent.mesh.pod import Namespace, Pod, PodUID


@dataclass(frozen=True, slots=True)
class PodSeen:
    """The pod exists and looks like this."""

    pod: Pod


@dataclass(frozen=True, slots=True)
class PodGone:
    """The pod with this UID no longer exists; its name may be another pod's by now."""

    uid: PodUID


@dataclass(frozen=True, slots=True)
class NamespaceSeen:
    """The namespace exists and looks like this."""

    namespace: Namespace


@dataclass(frozen=True, slots=True)
class NamespaceGone:
    """The namespace no longer exists."""

    name: str


@dataclass(frozen=True, slots=True)
class Synced:
    """Everything that existed when the source was started was told. Comes once."""


PodEvent = PodSeen | PodGone | NamespaceSeen | NamespaceGone | Synced


class PodSource(Protocol):
    """Something that knows the pods of this node."""

    def events(self) -> AsyncGenerator[PodEvent, None]:
        """Tell what exists, then ``Synced``, then every later state, without end."""
        ...
