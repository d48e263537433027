"""What the agent shows of itself."""
