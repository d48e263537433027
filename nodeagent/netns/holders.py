"""Which addresses the processes of a node have, in network namespaces that are not the host's."""

import asyncio
import os
from collections.abc import Collection

from nodeagent.mesh.pod import IPAddress
from nodeagent.netns.addresses import local_addresses
from nodeagent.netns.netns import Netns, NetnsId
from nodeagent.netns.threads import NetnsThreads


async def held_addresses(
    threads: NetnsThreads, proc: str, but: Collection[NetnsId]
) -> frozenset[IPAddress] | None:
    """Ask every network namespace in which a process runs, except for those of `but`.

    `proc` is where the host's procfs is. None where not all could be asked. For an
    uninstall: on a node with 250 pods it takes a second.
    """
    try:
        paths = await asyncio.to_thread(_namespaces, proc)
        found: set[IPAddress] = set()
        for identity, path in paths.items():
            if identity not in but:
                found |= await _addresses(threads, path)
    except PermissionError:
        return None
    return frozenset(found)


def _namespaces(proc: str) -> dict[NetnsId, str]:
    """Raises ``OSError`` where the processes cannot be listed, or one cannot be looked at."""
    found = {}
    for name in filter(str.isdecimal, os.listdir(proc)):
        path = f"{proc}/{name}/ns/net"
        try:
            found[NetnsId.of_path(path)] = path
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended
    return found


async def _addresses(threads: NetnsThreads, path: str) -> frozenset[IPAddress]:
    try:
        with Netns.open(path) as namespace:
            return await threads.run(namespace, local_addresses)
    except (FileNotFoundError, ProcessLookupError):
        return frozenset()
