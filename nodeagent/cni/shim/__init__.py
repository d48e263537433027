"""The static binary that the container runtime executes, and how it is built."""
