"""The heart: which pods belong in the mesh, and what has to be done for each. No I/O.

`table.py` has a `workload.py` for each pod, and `eligibility.py` decides whether the pod is
wanted. `reconciler.py` has a `worker.py` for each, which runs the steps in `enrollment.py`.
What the steps need from outside is in `dependencies.py`, as protocols.
"""
