"""Versions of the CNI specification."""

VERSIONS = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
"""Those that our plugin speaks, oldest first; as in its binary (shim/shim.c)."""
NEWEST = VERSIONS[-1]
