"""Figures about the agent, for Prometheus."""
