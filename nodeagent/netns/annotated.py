"""Network namespaces whose path is in the pod's own manifest."""

from nodeagent.mesh.errors import GiveUpError
from nodeagent.mesh.pod import NETNS_PATH, Pod
from nodeagent.netns.netns import Netns
from nodeagent.netns.verify import Verifier


class AnnotatedNetnsFinder:
    """Finds a pod's netns at the path in its annotation ``nodeagent.io/netns``.

    Only for pods from a folder of manifests, whose author is the operator: in a
    cluster, a tenant could name any path of the node.
    """

    def __init__(self, verifier: Verifier) -> None:
        self._verifier = verifier

    async def find(
        self,
        pod: Pod,
        handed_over: str | None,
        held: Netns | None = None,  # noqa: ARG002 - part of the protocol; to open the path again costs little
    ) -> Netns:
        """Open and verify; see `nodeagent.mesh.dependencies.NetnsFinder`."""
        path = handed_over or pod.annotations.get(NETNS_PATH)
        if path is None:
            raise GiveUpError(f"annotation {NETNS_PATH} is missing: it names the network namespace")
        return await self._verifier.open(path, pod)

    def found_at(self, pod: Pod) -> str:
        """See `nodeagent.mesh.dependencies.NetnsFinder`."""
        path = pod.annotations.get(NETNS_PATH, "")
        return f"{path}, named by the manifest (annotation {NETNS_PATH})" if path else ""
