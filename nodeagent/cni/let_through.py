"""Which pods start although nobody can say whether they are in the mesh (L15).

The agent and the plugin's binary go by the same description, `LetThrough.entry`: the binary
where the agent cannot be reached, the agent where it cannot decide. Both know a pod by its
names alone, and names are chosen by whoever may make pods in that Kubernetes namespace.
"""

import re
from dataclasses import dataclass

_SUFFIX = re.compile(r"[a-z0-9]{5}")
"""What a DaemonSet's controller appends to its name and a dash."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonPods:
    """The pods of one DaemonSet, recognized by their names."""

    namespace: str
    prefix: str
    """The DaemonSet's name, with a dash at its end."""

    def __contains__(self, pod: tuple[str, str]) -> bool:
        namespace, name = pod
        return (
            namespace == self.namespace
            and name.startswith(self.prefix)
            and _SUFFIX.fullmatch(name[len(self.prefix) :]) is not None
        )

    @property
    def command(self) -> str:
        """What a person types to see these pods, and on which nodes they are."""
        return f"kubectl get pods -o wide -n {self.namespace}"

    def entry(self) -> dict[str, str]:
        """The pods' description in our CNI entry, as the binary reads it."""
        return {"namespace": self.namespace, "podPrefix": self.prefix}


@dataclass(frozen=True, slots=True, kw_only=True)
class LetThrough:
    """The pods that start without a decision; every other pod is held until there is one (L16)."""

    agent: DaemonPods
    """Nobody is asked about the agent's own pods: the agent that would answer is what starts."""
    ztunnel: DaemonPods
    namespaces: frozenset[str]
    """Kubernetes namespaces whose pods do not wait for an agent (CNI_LET_THROUGH_NAMESPACES)."""

    def undecided(self, namespace: str, name: str) -> str | None:
        """Say why the pod starts where nobody can decide about it; None: it is held."""
        if (namespace, name) in self.ztunnel:
            return "a pod of ztunnel"
        if namespace in self.namespaces:
            return f"not decided; namespace {namespace} is in CNI_LET_THROUGH_NAMESPACES"
        return None

    def entry(self, excluded: frozenset[str]) -> dict[str, object]:
        """All this in our CNI entry, as the binary reads it.

        `excluded` are the Kubernetes namespaces whose pods are never in the mesh.
        """
        return {
            "namespaces": sorted(excluded | self.namespaces),
            "agent": self.agent.entry(),
            "pods": [self.ztunnel.entry()],
        }
