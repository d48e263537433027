"""The admin socket and the health port: what the agent tells of itself, and who asks."""
