"""Taking the agent off its node for good: pods, the CNI chain, the host's rules."""

import asyncio
import contextlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from nodeagent.agent.assembly import assembled, cluster_of
from nodeagent.agent.cni_wiring import uninstall_plugin
from nodeagent.agent.host import host_path, host_probes, open_host_netns
from nodeagent.cluster.api import ApiServer
from nodeagent.config import Settings
from nodeagent.netns.costs import NO_LIMITS
from nodeagent.netns.holders import held_addresses
from nodeagent.netns.threads import NetnsThreads
from nodeagent.netns.verify import host_netns_ids
from nodeagent.probes.removal import probed_addresses

_LIST_TIMEOUT = 30.0
_RELEASE_TIMEOUT = 60.0
"""Seconds beside REMOVAL_GRACE for which the command goes on trying."""
_SHOWN = 10


@dataclass(frozen=True, slots=True)
class UninstallReport:
    """What an uninstallation did, in lines for people."""

    lines: tuple[str, ...]
    complete: bool = True
    """Whether all was done that was asked for."""


async def uninstall(settings: Settings, *, release_pods: bool = False) -> UninstallReport:
    """Take the agent out of the host and of the CNI chain, for good.

    With `release_pods` every pod is taken out of the mesh before. Otherwise pods stay
    redirected until they are made anew, and while there are such pods on the node, the
    host's rules for their health probes stay. Raises ``RetryError``, ``OSError``.
    """
    remain = await _released(settings) if release_pods else []
    lines = [*remain, *_unchained(settings)]
    with contextlib.closing(NetnsThreads(4, limits=NO_LIMITS)) as threads:
        pods = await _probed_pods(settings, threads)
        if pods:
            lines.append(
                f"the host's rules for health probes stay: {_count(pods)} of the mesh on this"
                f" node need them ({_some(pods)}), and nobody keeps them true any more. To end"
                " that: run nodeagent uninstall --release-pods, or make these pods anew and run"
                " nodeagent uninstall"
            )
            return UninstallReport(tuple(lines), complete=not remain)
        # All that is proven to be ours goes, whatever the backend.
        async with host_probes(settings, threads, None) as probes:
            host = await probes.uninstall()
    lines += [
        *(f"the host's {what} is removed" for what in host.removed),
        *([] if host.removed else ["the host has no rules of the agent's"]),
        *(f"the host's {what}; left alone" for what in host.left),
        *(f"the host's {what}; not removed" for what in host.failed),
    ]
    return UninstallReport(tuple(lines), complete=not remain and not host.failed)


def _unchained(settings: Settings) -> Iterable[str]:
    if settings.cni_net_dir is None:
        yield "CNI_NET_DIR is not set: the CNI chain is left as it is"
        return
    for name, directory in (
        ("CNI_NET_DIR", settings.cni_net_dir),
        ("CNI_BIN_DIR", settings.cni_bin_dir),
    ):
        if not os.path.isdir(settings.on_host(directory)):
            yield f"{settings.on_host(directory)} does not exist ({name}): nothing to undo there"
    chain = uninstall_plugin(settings)
    yield from (f"{path} is as it was before" for path in chain.restored)
    yield from (f"{path} is removed" for path in chain.removed)
    if chain.kept:
        yield f"the CNI plugin's binary stays: {chain.kept}"


async def _probed_pods(settings: Settings, threads: NetnsThreads) -> list[str]:
    """The addresses of pods that run on the node, and whose probes the host's rules let through."""
    with open_host_netns(settings) as host:
        probed = await threads.run(host, probed_addresses)
    if not probed:
        return []
    host_ids = host_netns_ids(host_path(settings))
    held = await held_addresses(threads, settings.on_host("/proc"), host_ids)
    return sorted(str(address) for address in (probed if held is None else probed & held))


async def _released(settings: Settings) -> list[str]:
    """Take every pod out of the mesh; return a line for each that is not."""
    async with cluster_of(settings) as api:
        outcome: asyncio.Future[list[str]] = asyncio.Future()
        working = asyncio.create_task(_release(settings, api, outcome), name="release")
        either: tuple[asyncio.Future[Any], ...] = (working, outcome)
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        # What keeps pods right and tells the cluster has no end of its own.
        working.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await working
        return outcome.result()


async def _release(
    settings: Settings, api: ApiServer | None, outcome: asyncio.Future[list[str]]
) -> None:
    tasks = asyncio.TaskGroup()
    async with assembled(settings, api, tasks) as node:
        await node.start_probes()
        async with tasks:
            node.follow()
            try:
                async with asyncio.timeout(_LIST_TIMEOUT):
                    await node.reconciler.table.until_synced()
            except TimeoutError:
                outcome.set_result([f"no pod is released: no list of them in {_LIST_TIMEOUT:g} s"])
            else:
                remain = await node.reconciler.release(settings.removal_grace + _RELEASE_TIMEOUT)
                outcome.set_result([f"{row.pod} is not released: {row.detail}" for row in remain])
            await asyncio.Event().wait()


def _count(pods: list[str]) -> str:
    return f"{len(pods)} addresses of pods" if len(pods) > 1 else "an address of a pod"


def _some(pods: list[str]) -> str:
    return ", ".join(pods[:_SHOWN]) + (", …" if len(pods) > _SHOWN else "")
