"""What this process has open."""

import os


def open_descriptors() -> set[str]:
    """Each descriptor by number and target.

    Without the process's own network namespace: a pool's threads open that when they
    come to it.
    """
    own = os.readlink("/proc/self/ns/net")
    found = set()
    for number in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{number}")
        except FileNotFoundError:  # the listing's own
            continue
        if target != own:
            found.add(f"{number} {target}")
    return found
