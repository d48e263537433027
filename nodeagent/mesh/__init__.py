"""The heart: which pods are in the mesh, and what has to be done for each. No I/O."""
