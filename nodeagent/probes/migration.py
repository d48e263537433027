"""Taking over a host from the other backend, or from Istio's own agent (L7, L8)."""

import asyncio
from collections.abc import Collection
from functools import partial
from ipaddress import IPv4Address, IPv6Address

import structlog

from nodeagent.mesh.pod import Pod, PodUID
from nodeagent.netfilter.iptables_programs import Variant
from nodeagent.netns.netns import Netns
from nodeagent.netns.threads import NetnsThreads
from nodeagent.probes.drift import POLL, ProbeWatch
from nodeagent.probes.host_probes import HostProbes
from nodeagent.probes.iptables_backend import IptablesHostProbes
from nodeagent.probes.removal import Removal, remove

log = structlog.get_logger()

RETRY_AFTER, _LONGEST_PAUSE = 60.0, 3600.0
"""Seconds before leftovers that could not be removed are looked for again."""


class TakingOver:
    """Host probes in one backend, which end those in the others when they can do without them.

    That is when every pod that was enrolled at the start has its addresses in the set:
    until then a pod that is not looked at yet has its probes marked by the old rules.
    """

    def __init__(
        self,
        probes: HostProbes,
        threads: NetnsThreads,
        host: Netns,
        chosen: Variant | None,
    ) -> None:
        """`probes` work in `host` and are closed with this; `chosen` is None for nftables."""
        self._probes = probes
        self._threads = threads
        self._host = host
        self._chosen = chosen
        self._held: set[PodUID] = set()
        """The pods whose addresses are in; of interest until the others' rules are gone."""
        self._awaited: set[PodUID] | None = None
        """Those that have to be before; None before the first list, empty when it is over."""
        self._unswept = asyncio.Event()
        """Set while the others' rules could not be looked at or removed."""
        self._told: list[str] = []

    async def start(self) -> None:
        """See `HostProbes`."""
        await self._probes.start()

    async def keep(self) -> None:
        """Put back at once what others take out of the host's rules and sets, without end (L37)."""
        # The kernel tells of nftables, which iptables-nft is too, and of no ipset.
        poll = None if self._chosen is None else POLL
        watch = ProbeWatch(self._threads, self._host, self._probes.check, poll=poll)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(watch.run(), name="host probes watched")
            tasks.create_task(self._take_over_again(), name="former host probes removed")

    async def ensure(self, pod: Pod) -> tuple[str, ...]:
        """See `HostProbes`."""
        differed = await self._probes.ensure(pod)
        if pod.addresses:
            self._held.add(pod.uid)
            await self._arrived(pod.uid)
        return differed

    async def remove(self, uid: PodUID) -> None:
        """See `HostProbes`."""
        await self._probes.remove(uid)
        self._held.discard(uid)
        await self._arrived(uid)

    async def prune(self, enrolled: Collection[Pod]) -> None:
        """See `HostProbes`. Others' rules go now, or with the last of `enrolled` to be in."""
        await self._probes.prune(enrolled)
        self._awaited = {pod.uid for pod in enrolled} - self._held
        if not self._awaited:
            await self._take_over()

    async def uninstall(self) -> Removal:
        """See `HostProbes`."""
        return await self._probes.uninstall()

    async def aclose(self) -> None:
        """See `HostProbes`."""
        await self._probes.aclose()

    async def _arrived(self, uid: PodUID) -> None:
        if self._awaited and uid in self._awaited:
            self._awaited.discard(uid)
            if not self._awaited:
                await self._take_over()

    async def _take_over(self) -> None:
        """End what the other backends have; two sets that agree do no harm meanwhile (L35)."""
        others = {None, *Variant} - {self._chosen}
        sweep = partial(remove, self._probes.rules, others, istios_too=True)
        try:
            done = await self._threads.run(self._host, sweep)
        except OSError as error:
            done = Removal(failed=[f"host probes: {error}"])
        if done.removed:
            log.info("former host probe rules removed", removed=done.removed)
        if done.left:
            log.info("rules of somebody else with a name of ours are left alone", left=done.left)
        if done.failed:
            self._unswept.set()
        if done.failed and done.failed != self._told:
            log.warning("former host probe rules stay for now", reasons=done.failed)
        self._told = done.failed

    async def _take_over_again(self) -> None:
        pause = RETRY_AFTER
        while True:
            await self._unswept.wait()
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
            self._unswept.clear()
            await self._take_over()


def host_probes_for(
    variant: Variant | None,
    threads: NetnsThreads,
    host: Netns,
    *,
    probe_v4: IPv4Address,
    probe_v6: IPv6Address,
    ipv6: bool,
) -> TakingOver:
    """Make what keeps the probe set with iptables in this `variant`, or nftables for None.

    `host` is borrowed.
    """
    if variant is None:
        probes = HostProbes(threads, host, probe_v4=probe_v4, probe_v6=probe_v6, ipv6=ipv6)
    else:
        probes = IptablesHostProbes(
            threads, host, variant=variant, probe_v4=probe_v4, probe_v6=probe_v6, ipv6=ipv6
        )
    return TakingOver(probes, threads, host, variant)
