"""Removing everything of the agent's from its node, when no agent is to follow.

Three steps, in this order: the pods leave the mesh (only if asked for), the plugin leaves the
CNI chain, and the host's rules for health probes are removed. The rules stay while pods of
the mesh run on the node, because without them kubelet would find these pods unhealthy.
"""

import asyncio
import contextlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

from nodeagent.agent.assembly import Assembly, assembled, cluster_of
from nodeagent.agent.cni_wiring import uninstall_plugin
from nodeagent.agent.host import host_path, open_host_netns, probe_rules
from nodeagent.config import Settings
from nodeagent.netns.costs import NO_LIMITS
from nodeagent.netns.holders import held_addresses
from nodeagent.netns.threads import NetnsThreads
from nodeagent.netns.verify import host_netns_ids
from nodeagent.probes.removal import probed_addresses, remove_ours

_LIST_TIMEOUT = 30.0
"""Seconds until the pods of the node have to be known."""
_RELEASE_TIMEOUT = 60.0
"""Seconds, besides REMOVAL_GRACE, after which pods that are not released are given up."""
_SHOWN = 10
"""Addresses that are named at the most."""


@dataclass(frozen=True, slots=True)
class UninstallReport:
    """What an uninstallation did, in lines for people."""

    lines: tuple[str, ...]
    complete: bool = True
    """Whether all was done that was asked for."""


async def uninstall(settings: Settings, *, release_pods: bool = False) -> UninstallReport:
    """Remove everything; with `release_pods` every pod is taken out of the mesh before.

    Without it, pods stay redirected until they are made anew. Raises ``RetryError``,
    ``OSError``, and ``NoClusterError`` with `release_pods`.
    """
    remain = await _release_pods(settings) if release_pods else []
    lines = [*remain, *_leave_chain(settings)]
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
        with open_host_netns(settings) as host_netns:
            host = await threads.run(host_netns, partial(remove_ours, probe_rules(settings)))
    lines += [
        *(f"the host's {what} is removed" for what in host.removed),
        *([] if host.removed else ["the host has no rules of the agent's"]),
        *(f"the host's {what}; left alone" for what in host.left),
        *(f"the host's {what}; not removed" for what in host.failed),
    ]
    return UninstallReport(tuple(lines), complete=not remain and not host.failed)


def _leave_chain(settings: Settings) -> Iterable[str]:
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
    """The addresses in the host's sets that pods of this node have now."""
    with open_host_netns(settings) as host:
        probed = await threads.run(host, probed_addresses)
    if not probed:
        return []
    host_ids = host_netns_ids(host_path(settings))
    held = await held_addresses(threads, settings.on_host("/proc"), host_ids)
    return sorted(str(address) for address in (probed if held is None else probed & held))


class _ReleasedError(Exception):
    """Ends the task group that takes pods out of the mesh: its tasks have no end of their own."""


async def _end_group() -> None:
    raise _ReleasedError


async def _release_pods(settings: Settings) -> list[str]:
    """Take every pod out of the mesh; return a line for each that is not released."""
    remain: list[str] = []
    tasks = asyncio.TaskGroup()
    try:
        async with cluster_of(settings) as api, assembled(settings, api, tasks) as node:
            await node.start_probes()
            async with tasks:
                node.follow()
                remain = await _release_known_pods(node, settings.removal_grace)
                tasks.create_task(_end_group(), name="released")
    except* _ReleasedError:
        pass
    return remain


async def _release_known_pods(node: Assembly, grace: float) -> list[str]:
    try:
        async with asyncio.timeout(_LIST_TIMEOUT):
            await node.reconciler.table.until_synced()
    except TimeoutError:
        return [f"no pod is released: no list of them in {_LIST_TIMEOUT:g} s"]
    remain = await node.reconciler.release(grace + _RELEASE_TIMEOUT)
    return [f"{workload.pod} is not released: {workload.detail}" for workload in remain]


def _count(pods: list[str]) -> str:
    return f"{len(pods)} addresses of pods" if len(pods) > 1 else "an address of a pod"


def _some(pods: list[str]) -> str:
    return ", ".join(pods[:_SHOWN]) + (", …" if len(pods) > _SHOWN else "")
