"""A node agent for Istio's ambient mode."""
