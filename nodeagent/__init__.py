"""A node agent for Istio's ambient mode."""

from nodeagent.lazy_package import postpone

__version__ = "0.1.0"
"""Of the package, of the image, and of what `nodeagent --version` says; the manifests' tag."""

# Before any module of the agent imports a part of one of these.
postpone("pyroute2", "kubernetes", "kubernetes.aio", "kubernetes.aio.config")
