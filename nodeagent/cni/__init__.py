"""The CNI chain: requests of the container runtime, and our place in its configuration."""
