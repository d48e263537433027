"""Moving the host's probe rules to the chosen backend, from another one or Istio's own agent.

`BackendMigration` is what the agent works with: it passes everything on to `HostProbes`,
and removes what the other backends have on the host once nothing needs it any more (L7, L8).
That is when every pod that was enrolled at the agent's start has its addresses in the
chosen backend's sets: until then the old rules let the probes of the other pods through.
What cannot be removed is tried again, from a minute to an hour later.
"""

import asyncio
from collections.abc import Collection
from functools import partial

import structlog

from nodeagent.mesh.pod import Pod, PodUID
from nodeagent.netfilter.iptables_programs import Variant
from nodeagent.netns.netns import Netns
from nodeagent.netns.threads import NetnsThreads
from nodeagent.observer import NOBODY, Observer
from nodeagent.probes.backend import ProbeBackend
from nodeagent.probes.branch_interfaces import BranchInterfaces
from nodeagent.probes.drift import POLL_INTERVAL, ProbeWatch
from nodeagent.probes.host_probes import HostProbes
from nodeagent.probes.iptables_backend import IptablesProbeBackend
from nodeagent.probes.nft_backend import NftProbeBackend
from nodeagent.probes.removal import Removal, remove
from nodeagent.probes.rules import ProbeRules

log = structlog.get_logger()

RETRY_AFTER, _LONGEST_PAUSE = 60.0, 3600.0
"""Seconds before leftovers that could not be removed are looked for again."""


class BackendMigration:
    """Host probes in the chosen backend; ends what the other backends have when it may."""

    def __init__(
        self,
        chosen: Variant | None,
        rules: ProbeRules,
        threads: NetnsThreads,
        host: Netns,
        observer: Observer = NOBODY,
        *,
        branch_interfaces: bool = True,
    ) -> None:
        """`chosen` is the variant of iptables, or None for nftables; `host` is borrowed.

        `branch_interfaces`: whether `BranchInterfaces` does its work where a node is AWS's.
        """
        self._chosen = chosen
        branches = BranchInterfaces(wanted=branch_interfaces)
        self._probes = HostProbes(threads, host, backend_for(chosen, rules), branches)
        self._threads = threads
        self._host = host
        self._observer = observer
        self._covered: set[PodUID] = set()
        """The pods whose addresses are in the chosen backend's sets."""
        self._awaited: set[PodUID] | None = None
        """The pods that need the others' rules. None before `prune`, empty when none is left."""
        self._leftovers = asyncio.Event()
        """Set while something of the others could not be looked at or removed."""
        self._reported: list[str] = []
        """The reasons in the log's last warning."""

    @property
    def wanted(self) -> int:
        """See `HostProbes.wanted`."""
        return self._probes.wanted

    async def start(self) -> None:
        """See `HostProbes.start`."""
        await self._probes.start()

    async def keep_repaired(self) -> None:
        """Put back at once what others take out of the host's rules and sets (L37); no end."""
        # The kernel tells of changes to nftables, which iptables-nft is too, but to no ipset.
        poll = None if self._chosen is None else POLL_INTERVAL
        watch = ProbeWatch(
            self._threads, self._host, self._probes.check, poll=poll, observer=self._observer
        )
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(watch.run(), name="host probes watched")
            tasks.create_task(self._retry_removal(), name="former host probes removed")

    async def ensure(self, pod: Pod) -> tuple[str, ...]:
        """See `HostProbes.ensure`."""
        drift = await self._probes.ensure(pod)
        if pod.addresses:
            self._covered.add(pod.uid)
            await self._no_longer_awaited(pod.uid)
        return drift

    async def inspect(self, pod: Pod) -> tuple[str, ...]:
        """See `HostProbes.inspect`."""
        return await self._probes.inspect(pod)

    async def remove(self, uid: PodUID) -> None:
        """See `HostProbes.remove`."""
        await self._probes.remove(uid)
        self._covered.discard(uid)
        await self._no_longer_awaited(uid)

    async def prune(self, enrolled: Collection[Pod]) -> None:
        """See `HostProbes.prune`. The others' rules go once all of `enrolled` are covered."""
        await self._probes.prune(enrolled)
        self._awaited = {pod.uid for pod in enrolled} - self._covered
        if not self._awaited:
            await self._remove_others()

    async def aclose(self) -> None:
        """See `HostProbes.aclose`."""
        await self._probes.aclose()

    async def _no_longer_awaited(self, uid: PodUID) -> None:
        if self._awaited and uid in self._awaited:
            self._awaited.discard(uid)
            if not self._awaited:
                await self._remove_others()

    async def _remove_others(self) -> None:
        """Remove what other backends have; meanwhile two sets that agree do no harm (L35)."""
        others = {None, *Variant} - {self._chosen}
        work = partial(remove, self._probes.rules, others, istios_too=True)
        try:
            done = await self._threads.run(self._host, work)
        except OSError as error:
            done = Removal(failed=[f"host probes: {error}"])
        except Exception as error:
            # A fault of ours here must not end the agent: the pods have their probes.
            log.exception("unexpected failure", work="former host probe rules")
            done = Removal(failed=[f"host probes: unexpected: {error!r}"])
        if done.removed:
            log.info("former host probe rules removed", removed=done.removed)
        if done.left:
            log.info("rules of somebody else with a name of ours are left alone", left=done.left)
        if done.failed:
            self._leftovers.set()
        if done.failed and done.failed != self._reported:
            log.warning("former host probe rules stay for now", reasons=done.failed)
        self._reported = done.failed

    async def _retry_removal(self) -> None:
        pause = RETRY_AFTER
        while True:
            await self._leftovers.wait()
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
            self._leftovers.clear()
            await self._remove_others()


def backend_for(variant: Variant | None, rules: ProbeRules) -> ProbeBackend:
    """Make the backend for iptables in this `variant`, or for nftables if it is None."""
    return NftProbeBackend(rules) if variant is None else IptablesProbeBackend(variant, rules)
