"""Taking over a host from the other backend, or from Istio's own agent (L7, L8)."""

from collections.abc import Collection
from functools import partial
from ipaddress import IPv4Address, IPv6Address

import structlog

from nodeagent.mesh.pod import Pod, PodUID
from nodeagent.netns.namespace import NetworkNamespace
from nodeagent.netns.threads import NamespaceThreads
from nodeagent.redirect.errors import RedirectError
from nodeagent.redirect.iptables_programs import Variant
from nodeagent.redirect.nftables import render_removal
from nodeagent.redirect.probe_ipsets import ProbeIpsets
from nodeagent.redirect.probe_rules import TABLE
from nodeagent.redirect.probe_table import ProbeTable
from nodeagent.redirect.probe_watch import POLL, ProbeWatch
from nodeagent.redirect.probes import HostProbes, HostProbesError
from nodeagent.redirect.probes_iptables import IptablesHostProbes, remove_sets, remove_variant

log = structlog.get_logger()


class TakingOver:
    """Host probes in one backend, which end those in the others when they can do without them.

    That is when every pod that was enrolled at the start has its addresses in the set:
    until then a pod that is not looked at yet has its probes marked by the old rules.
    """

    def __init__(
        self,
        probes: HostProbes,
        threads: NamespaceThreads,
        host: NetworkNamespace,
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

    async def start(self) -> None:
        """See `HostProbes`."""
        await self._probes.start()

    async def keep(self) -> None:
        """Put back at once what others take out of the host's rules and sets, without end (L37)."""
        # The kernel tells of nftables, which iptables-nft is too, and of no ipset.
        poll = None if self._chosen is None else POLL
        await ProbeWatch(self._threads, self._host, self._probes.check, poll=poll).run()

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

    async def uninstall(self) -> bool:
        """See `HostProbes`. What the others have goes as well."""
        # The others first: the kernel keeps a set for as long as a rule uses it.
        swept = await self._sweep()
        return await self._probes.uninstall() or bool(swept)

    async def aclose(self) -> None:
        """See `HostProbes`."""
        await self._probes.aclose()

    async def _arrived(self, uid: PodUID) -> None:
        if self._awaited and uid in self._awaited:
            self._awaited.discard(uid)
            if not self._awaited:
                await self._take_over()

    async def _take_over(self) -> None:
        try:
            removed = await self._sweep()
        except HostProbesError as error:
            # Two sets that agree do no harm, and the next start tries again.
            log.warning("former host probe rules stay", reason=str(error))
        else:
            if removed:
                log.info("former host probe rules removed", removed=list(removed))

    async def _sweep(self) -> tuple[str, ...]:
        try:
            return await self._threads.run(self._host, partial(_sweep, self._chosen))
        except (RedirectError, OSError) as error:
            raise HostProbesError(f"host probes: {error}") from error


def host_probes_for(
    variant: Variant | None,
    threads: NamespaceThreads,
    host: NetworkNamespace,
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


def _sweep(chosen: Variant | None) -> tuple[str, ...]:
    removed = [
        what for variant in Variant if variant is not chosen for what in remove_variant(variant)
    ]
    if chosen is None:
        with ProbeIpsets() as sets:
            removed += remove_sets(sets)
    elif _remove_table():
        removed.append(f"table {TABLE}")
    return tuple(removed)


def _remove_table() -> bool:
    table = ProbeTable()
    try:
        stood = bool(table.standing())
        if stood:
            table.apply(render_removal([TABLE]))
    finally:
        table.close()
    return stood
