"""A node agent for Istio's ambient mode."""

__version__ = "0.1.0"
"""Of the package, of the image, and of what `nodeagent --version` says; the manifests' tag."""
