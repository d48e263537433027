"""Which addresses the pods of a node have, going by the network namespaces of its processes."""

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
    """The addresses in every netns in which a process runs, except for those in `but`.

    `proc` is where the host's procfs is. None where not all could be asked. For an
    uninstall: on a node with 250 pods it takes a second.
    """
    try:
        paths = await asyncio.to_thread(_paths_by_netns, proc)
        found: set[IPAddress] = set()
        for identity, path in paths.items():
            if identity not in but:
                found |= await _addresses(threads, path)
    except PermissionError:
        return None
    return frozenset(found)


def _paths_by_netns(proc: str) -> dict[NetnsId, str]:
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
        with Netns.open(path) as netns:
            return await threads.run(netns, local_addresses)
    except (FileNotFoundError, ProcessLookupError):
        return frozenset()
