"""A node agent for Istio's ambient mode."""

from nodeagent.lean_imports import postpone

__version__ = "0.1.0"
"""Of the package, of the image, and of what `nodeagent --version` says; the manifests' tag."""

# Before any module of the agent imports a part of one of these. The rest of pyroute2 is
# 10 MiB of the agent's 58 with a folder of manifests. The rest of kubernetes is 19 MiB of 96
# with a cluster, in a pod; 9 with a kubeconfig, because what reads one imports pydantic.
postpone("pyroute2", "kubernetes", "kubernetes.aio", "kubernetes.aio.config")
