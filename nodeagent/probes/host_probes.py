"""The host's probe set: whose health probes reach the app without passing ztunnel."""

import asyncio
import time
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address, IPv6Address
from typing import TypeVar

import structlog

from nodeagent.mesh.errors import GiveUpError, RetryError
from nodeagent.mesh.pod import IPAddress, Pod, PodUID
from nodeagent.netfilter.errors import RedirectError
from nodeagent.netfilter.iptables_programs import Variant
from nodeagent.netns.netns import Netns
from nodeagent.netns.threads import NetnsThreads
from nodeagent.probes.nft_rules import (
    OWNER,
    ProbeRules,
    render,
    render_additions,
    render_deletions,
)
from nodeagent.probes.nft_table import ProbeTable, differences, reference
from nodeagent.probes.removal import Removal, remove

log = structlog.get_logger()

T = TypeVar("T")


class HostProbesError(RetryError):
    """The host's probe set could not be read or written; what stood there stands."""


@dataclass(frozen=True, slots=True)
class Check:
    """What one look at all of the host's rules and sets has found, and what it has cost."""

    differed: tuple[str, ...]
    """What was not as it should be, in words. It is by now."""
    seconds: float


class HostProbes:
    """Keeps the addresses of enrolled pods in the host's set, one change at a time.

    What stands is always asked of the kernel, an address at a time. What is
    remembered is what each pod should have and where to look for what it had:
    enough to put back a table that others flushed, and to give an address that
    two pods claim to the other one when the first goes.
    """

    def __init__(
        self,
        threads: NetnsThreads,
        host: Netns,
        *,
        probe_v4: IPv4Address,
        probe_v6: IPv6Address,
        ipv6: bool,
    ) -> None:
        """`host` is borrowed; the probe addresses are the source that the probes get."""
        self._threads = threads
        self._host = host
        self._rules = ProbeRules(probe_v4=probe_v4, probe_v6=probe_v6, ipv6=ipv6)
        self._claims: dict[PodUID, frozenset[IPAddress]] = {}
        """By the pods that were ensured, the latest last."""
        self._former: dict[PodUID, frozenset[IPAddress]] = {}
        """What the set may have besides: left by a former agent, or by a change that failed."""
        self._turn = asyncio.Lock()
        self._table: ProbeTable | None = None
        self._right: int | None = None
        """The generation at which the rules were right; addresses are asked for one by one."""
        self._settled: dict[PodUID, tuple[int, tuple[IPAddress, ...]]] = {}
        """The generation at which a pod's addresses were in, and these, as the pod has them."""
        self._complete: Hashable = None
        """What `_contents` told when every address that a pod should have was in."""

    @property
    def rules(self) -> ProbeRules:
        """What the host's rules should be."""
        return self._rules

    async def start(self) -> None:
        """Have the host's rules and sets stand; keep every address that is in them.

        Where all is right nothing is written. Raises `HostProbesError`.
        """
        await self._run(self._start)

    async def ensure(self, pod: Pod) -> tuple[str, ...]:
        """Have every address of `pod` in the set, for it; return what differed before.

        An address that the set has for another pod is taken over; one that `pod`
        no longer has goes. A pod that has none just now keeps what it had (L9).
        Raises `HostProbesError`, ``GiveUpError`` for a UID that cannot stand in a rule set.
        """
        if not OWNER.fullmatch(pod.uid):
            raise GiveUpError(
                f"host probes: {pod.uid[:80]!r} is not a UID that a rule set can hold"
            )
        if self._is_settled(pod):
            return ()
        return await self._run(partial(self._ensure, pod))

    def _is_settled(self, pod: Pod) -> bool:
        """Whether nobody has changed a rule or set of the host since the pod's were looked at.

        Asked without a thread, on the socket that is there.
        """
        table, settled = self._table, self._settled.get(pod.uid)
        if table is None or settled is None or self._turn.locked():
            return False
        try:
            return settled == (table.generation(), pod.addresses)
        except RedirectError:
            self._table = None
            table.close()
            return False

    async def check(self) -> Check:
        """Have rules, sets and every pod's addresses stand; raises `HostProbesError`."""
        return await self._run(self._check)

    async def remove(self, uid: PodUID) -> None:
        """Take out what the set has for `uid`. Idempotent; raises `HostProbesError`.

        An address that a later pod was given meanwhile is that pod's, and stays.
        """
        await self._run(partial(self._remove, uid))

    async def prune(self, enrolled: Collection[Pod]) -> None:
        """Take out every address that no pod of `enrolled`, and none ensured here, has.

        For the start. Nothing is added: a pod may have been removed since
        `enrolled` was put together. If a pod of them has no address yet, nothing
        is pruned (L9). Raises `HostProbesError`.
        """
        if unknown := [str(pod) for pod in enrolled if not pod.addresses]:
            log.info("host probe set not pruned: pods have no address", pods=unknown[:10])
            return
        await self._run(partial(self._prune, enrolled))

    async def uninstall(self) -> Removal:
        """Remove rules and sets in every backend, as far as they are proven to be ours.

        Raises `HostProbesError` where the host cannot be entered.
        """
        async with self._turn:
            for noted in (self._claims, self._settled, self._former):
                noted.clear()
            sweep = partial(remove, self._rules, {None, *Variant}, istios_too=False)
            try:
                return await self._threads.run(self._host, sweep)
            except OSError as error:
                raise HostProbesError(f"host probes: {error}") from error

    async def aclose(self) -> None:
        """Let go of the kernel's sockets, when the last change is over; what stands stays."""
        async with self._turn:
            table, self._table = self._table, None
            if table is not None:
                table.close()

    async def _run(self, job: Callable[[ProbeTable], T]) -> T:
        await self._turn.acquire()
        work = asyncio.create_task(
            self._threads.run(self._host, partial(self._work, job)), name="host probes"
        )
        # A caller that is cancelled leaves its job running: the turn ends with the job.
        work.add_done_callback(lambda _: self._turn.release())
        try:
            return await asyncio.shield(work)
        except (RedirectError, OSError) as error:
            raise HostProbesError(f"host probes: {error}") from error

    def _work(self, job: Callable[[ProbeTable], T]) -> T:
        table, self._table = self._table or ProbeTable(), None
        try:
            result = job(table)
        except BaseException:
            # Answers to what failed may still be on their way on its socket.
            table.close()
            raise
        self._table = table
        return result

    def _start(self, table: ProbeTable) -> None:
        self._mend(table)
        for address, owner in table.owners().items():
            uid = PodUID(owner)
            if owner and uid not in self._claims:
                self._former[uid] = self._former.get(uid, frozenset()) | {address}

    def _check(self, table: ProbeTable) -> Check:
        begun = time.monotonic()
        differed = self._mend(table) + self._restore(table)
        return Check(differed, time.monotonic() - begun)

    def _restore(self, table: ProbeTable) -> tuple[str, ...]:
        """Put back what was taken out of the sets; return what that was."""
        contents = self._contents(table)  # before the look: what changes during it is seen
        if contents == self._complete:
            return ()
        have = table.owners()
        want = {
            address: uid
            for uid, claimed in self._claims.items()
            for address in claimed
            if address.version in self._rules.versions
        }
        lost = {address: uid for address, uid in want.items() if have.get(address) != uid}
        if not lost:
            self._complete = contents
        self._change(table, [address for address in lost if address in have], dict(lost))
        return tuple(f"{address} is not in for its pod" for address in _sorted(lost))

    def _contents(self, table: ProbeTable) -> Hashable:
        """What is another when the addresses in the sets are others."""
        return table.generation()

    def _ensure(self, pod: Pod, table: ProbeTable) -> tuple[str, ...]:
        if pod.addresses:
            before = self._recall(pod.uid)
            self._claims[pod.uid] = wanted = frozenset(self._markable(pod.addresses))
        else:
            former = self._former.get(pod.uid, frozenset())
            wanted = before = self._claims.get(pod.uid, former)
        differed = list(self._mend(table))
        taken: list[IPAddress] = []
        added: dict[IPAddress, str] = {}
        for address in _sorted(wanted):
            owner = table.owner(address)
            if owner is None:
                differed.append(f"{address} is missing")
                added[address] = pod.uid
            elif owner != pod.uid and pod.addresses:
                differed.append(f"{address} belongs to {owner or 'nobody'}")
                taken.append(address)
                added[address] = pod.uid
        gone = [a for a in _sorted(before - wanted) if table.owner(a) == pod.uid]
        differed += [f"{address} is no longer the pod's" for address in gone]
        self._change(table, [*taken, *gone], added | self._inherited(gone))
        if pod.addresses:
            del self._former[pod.uid]
            if self._right is not None:  # with what was changed just now it is another
                self._settled[pod.uid] = self._right, pod.addresses
        return tuple(differed)

    def _remove(self, uid: PodUID, table: ProbeTable) -> None:
        gone = [a for a in _sorted(self._recall(uid)) if table.owner(a) == uid]
        self._change(table, gone, self._inherited(gone))
        del self._former[uid]

    def _prune(self, enrolled: Collection[Pod], table: ProbeTable) -> None:
        wanted = {address for pod in enrolled for address in self._markable(pod.addresses)}
        wanted.update(*self._claims.values())
        gone = [address for address in table.owners() if address not in wanted]
        self._change(table, gone, {})
        if gone:
            log.info("host probe set pruned", addresses=[str(a) for a in _sorted(gone)])

    def _mend(self, table: ProbeTable) -> tuple[str, ...]:
        generation = table.generation()  # before the look: what changes during it is seen
        if generation == self._right:
            return ()
        differed = differences(table.standing(), reference(self._rules))
        if not differed:
            self._right = generation
        else:
            owners = {
                address: owner
                for address, owner in table.owners().items()
                if address.version in self._rules.versions
            }
            for uid, addresses in self._claims.items():
                owners.update(dict.fromkeys(addresses, uid))
            table.apply(render(self._rules, owners))
            log.info("host probe table written", differed=list(differed), addresses=len(owners))
        return differed

    def _recall(self, uid: PodUID) -> frozenset[IPAddress]:
        """End the claim of `uid`; return, and keep until a change is made, what it may have."""
        self._settled.pop(uid, None)
        had = self._former.get(uid, frozenset()) | self._claims.pop(uid, frozenset())
        self._former[uid] = had
        return had

    def _inherited(self, addresses: Iterable[IPAddress]) -> dict[IPAddress, str]:
        """Those of `addresses` that a pod claims, for the latest that does."""
        return {
            address: uid
            for uid, claimed in self._claims.items()
            for address in addresses
            if address in claimed
        }

    def _markable(self, addresses: Iterable[IPAddress]) -> Iterator[IPAddress]:
        for address in addresses:
            plain = _plain(address)
            # No packet for the last three ever leaves the host for a pod.
            if plain.version in self._rules.versions and not (
                plain.is_loopback or plain.is_unspecified or plain.is_multicast
            ):
                yield plain

    @staticmethod
    def _change(
        table: ProbeTable, deleted: Iterable[IPAddress], added: dict[IPAddress, str]
    ) -> None:
        # A comment cannot be changed: the element goes and comes in one transaction.
        if text := render_deletions(deleted) + render_additions(added):
            table.apply(text)


def _plain(address: IPAddress) -> IPAddress:
    """The address as it is in a packet: IPv4 where it was mapped, and without a zone."""
    if isinstance(address, IPv6Address):
        return address.ipv4_mapped or IPv6Address(int(address))
    return address


def _sorted(addresses: Iterable[IPAddress]) -> list[IPAddress]:
    return sorted(addresses, key=lambda address: (address.version, int(address)))
