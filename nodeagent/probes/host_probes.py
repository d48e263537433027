"""The host's probe set: whose health probes reach the app without passing ztunnel.

`HostProbes` puts the addresses of enrolled pods into the host's sets and takes them out
again, one change at a time, in a thread in the host's network namespace. What is in the
sets is asked of the kernel each time, an address at a time. `HostProbes` itself remembers
only what each pod should have, and which addresses may be left in the sets of what a pod
had: enough to fill sets again that somebody has flushed, and to give an address that two
pods claim to the other one when the first pod goes. The rules and sets themselves are
read and written by a `ProbeBackend`. The policy rules that probes need on some nodes of
AWS are the matter of `BranchInterfaces`.
"""

import asyncio
import time
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv6Address
from typing import TypeVar

import structlog

from nodeagent.mesh.errors import GiveUpError, RetryError
from nodeagent.mesh.pod import IPAddress, Pod, PodUID
from nodeagent.netfilter.errors import RulesError
from nodeagent.netns.netns import Netns
from nodeagent.netns.threads import NetnsThreads
from nodeagent.probes.backend import Occasion, ProbeBackend, Repair
from nodeagent.probes.branch_interfaces import BranchInterfaces
from nodeagent.probes.rules import OWNER, Owners, ProbeRules, claimed_addresses

log = structlog.get_logger()

T = TypeVar("T")


class HostProbesError(RetryError):
    """The host's probe set could not be read or written.

    With nftables nothing has changed then. With iptables each set and the chain of each
    family is written by itself: those before the one that failed have been.
    """


@dataclass(frozen=True, slots=True)
class Check:
    """What one look at all of the host's rules and sets has found, and what it has cost."""

    drift: tuple[str, ...]
    """What was not as it should be, in words. It has been repaired."""
    seconds: float


class HostProbes:
    """Keeps the addresses of enrolled pods in the host's sets."""

    def __init__(
        self,
        threads: NetnsThreads,
        host: Netns,
        backend: ProbeBackend,
        branches: BranchInterfaces,
    ) -> None:
        """`host` is borrowed; `backend` is used by nobody else, and closed by `aclose`."""
        self._threads = threads
        self._host = host
        self._backend = backend
        self._branches = branches
        self._claims: dict[PodUID, frozenset[IPAddress]] = {}
        """What each pod should have in the sets; the pod that was ensured last comes last."""
        self._unclaimed: dict[PodUID, frozenset[IPAddress]] = {}
        """What the sets may have for a pod besides its claim.

        It was put there by an earlier agent, or a change that was to delete it has failed.
        """
        self._lock = asyncio.Lock()
        """Held for as long as a thread uses the backend."""
        self._settled: dict[PodUID, tuple[int, tuple[IPAddress, ...]]] = {}
        """The pods for which all was found right: at which generation, with which addresses."""
        self._complete: Hashable = None
        """The sets' fingerprint when every claimed address was in them."""

    @property
    def rules(self) -> ProbeRules:
        """What the host's rules should be."""
        return self._backend.rules

    @property
    def wanted(self) -> int:
        """How many addresses of pods should be in the sets."""
        # As a copy: a thread may change it meanwhile.
        return len(frozenset().union(*list(self._claims.values())))

    async def start(self) -> None:
        """Have the host's rules and sets installed; keep every address that is in them.

        Where all is right nothing is written. Raises `HostProbesError`.
        """
        await self._run(self._start)

    async def ensure(self, pod: Pod) -> tuple[str, ...]:
        """Have every address of `pod` in the sets, for `pod`; return what differed before.

        An address that a set has for another pod is taken over. An address that `pod`
        no longer has is taken out. A pod without any address just now keeps what it had (L9).
        Raises `HostProbesError`; ``GiveUpError`` for a UID that cannot be a set's comment.
        """
        if not OWNER.fullmatch(pod.uid):
            raise GiveUpError(
                f"host probes: {pod.uid[:80]!r} is not a UID that a rule set can hold"
            )
        if self._is_settled(pod):
            return ()
        return await self._run(partial(self._ensure, pod))

    async def inspect(self, pod: Pod) -> tuple[str, ...]:
        """Say which of the pod's addresses the sets do not have for it, and write nothing.

        Raises `HostProbesError`.
        """
        return await self._run(partial(self._inspect, pod))

    def _is_settled(self, pod: Pod) -> bool:
        """Whether nothing on the host has changed since all was found right for `pod`.

        It is asked without a thread, so most looks at pods that are right cost 0.01 ms.
        """
        generation, addresses = self._settled.get(pod.uid, (None, ()))
        return (
            generation is not None
            and addresses == pod.addresses
            and not self._lock.locked()
            and not self._branches.active  # nothing tells of changes to policy rules
            and self._backend.unchanged_since(generation)
        )

    async def check(self) -> Check:
        """Have the rules, the sets and every pod's addresses put right.

        Raises `HostProbesError`.
        """
        return await self._run(self._check)

    async def remove(self, uid: PodUID) -> None:
        """Take out what the sets have for `uid`. Idempotent; raises `HostProbesError`.

        An address that a later pod was given meanwhile is that pod's, and is left in.
        """
        await self._run(partial(self._remove, uid))

    async def prune(self, enrolled: Collection[Pod]) -> None:
        """Take out every address that neither a pod of `enrolled` nor one ensured here has.

        For the start. Nothing is added: a pod may have been removed since `enrolled` was
        put together. While a pod of `enrolled` has no address, nothing is pruned (L9).
        Raises `HostProbesError`.
        """
        if unknown := [str(pod) for pod in enrolled if not pod.addresses]:
            log.info("host probe set not pruned: pods have no address", pods=unknown[:10])
            return
        await self._run(partial(self._prune, enrolled))

    async def aclose(self) -> None:
        """Close the backend when the last change is over; rules and sets stay in the kernel."""
        async with self._lock:
            self._backend.close()

    async def _run(self, job: Callable[[], T]) -> T:
        await self._lock.acquire()
        work = asyncio.create_task(
            self._threads.run(self._host, partial(self._work, job)), name="host probes"
        )
        # A caller that is cancelled leaves its job running: the lock is held until that ends.
        work.add_done_callback(lambda _: self._lock.release())
        try:
            return await asyncio.shield(work)
        except (RulesError, OSError) as error:
            raise HostProbesError(f"host probes: {error}") from error

    def _work(self, job: Callable[[], T]) -> T:
        try:
            return job()
        except BaseException:
            # Answers to what failed may still be on their way on the backend's socket.
            self._backend.close()
            raise

    def _start(self) -> None:
        self._repair(Occasion.START)
        for address, owner in self._backend.owners().items():
            uid = PodUID(owner)
            if owner and uid not in self._claims:
                self._unclaimed[uid] = self._unclaimed.get(uid, frozenset()) | {address}
        self._branches.look()

    def _check(self) -> Check:
        begun = time.monotonic()
        drift = self._repair(Occasion.CHANGE).drift + self._restore()
        return Check(drift, time.monotonic() - begun)

    def _repair(self, occasion: Occasion) -> Repair:
        repair = self._backend.repair(self._claims, occasion)
        if repair.drift:
            log.info("host probe rules written", differed=list(repair.drift))
        return repair

    def _restore(self) -> tuple[str, ...]:
        """Put back what was taken out of the sets; return what that was."""
        # Asked before the addresses are read, so that a change meanwhile is noticed next time.
        fingerprint = self._backend.contents_fingerprint()
        if fingerprint == self._complete:
            return ()
        installed = self._backend.owners()
        claimed = claimed_addresses(self._claims, self.rules.versions)
        lost = {a: uid for a, uid in claimed.items() if installed.get(a) != uid}
        if not lost:
            self._complete = fingerprint
        self._change([address for address in lost if address in installed], lost)
        return tuple(f"{address} is not in for its pod" for address in _sorted(lost))

    def _ensure(self, pod: Pod) -> tuple[str, ...]:
        if pod.addresses:
            before = self._withdraw_claim(pod.uid)
            self._claims[pod.uid] = desired = frozenset(self._eligible(pod.addresses))
        else:
            unclaimed = self._unclaimed.get(pod.uid, frozenset())
            desired = before = self._claims.get(pod.uid, unclaimed)
        repair = self._repair(Occasion.POD)
        drift = list(repair.drift)
        taken: list[IPAddress] = []
        added: dict[IPAddress, str] = {}
        for address in _sorted(desired):
            owner = self._backend.owner(address)
            if owner is None:
                drift.append(f"{address} is missing")
                added[address] = pod.uid
            elif owner != pod.uid and pod.addresses:
                drift.append(f"{address} belongs to {owner or 'nobody'}")
                taken.append(address)
                added[address] = pod.uid
        gone = [a for a in _sorted(before - desired) if self._backend.owner(a) == pod.uid]
        drift += [f"{address} is no longer the pod's" for address in gone]
        inherited = self._inherited(gone)
        self._change([*taken, *gone], added | inherited)
        # After the sets: these rules do nothing for a pod that is not in them.
        self._branches.remove(set(gone) - inherited.keys())
        drift += self._branches.ensure(desired)
        if pod.addresses:
            del self._unclaimed[pod.uid]
            if repair.generation is not None and not drift:
                self._settled[pod.uid] = repair.generation, pod.addresses
        return tuple(drift)

    def _inspect(self, pod: Pod) -> tuple[str, ...]:
        owners = {a: self._backend.owner(a) for a in _sorted(self._eligible(pod.addresses))}
        return tuple(
            f"{address} is missing"
            if owner is None
            else f"{address} belongs to {owner or 'nobody'}"
            for address, owner in owners.items()
            if owner != pod.uid
        )

    def _remove(self, uid: PodUID) -> None:
        had = _sorted(self._withdraw_claim(uid))
        owners = {address: self._backend.owner(address) for address in had}
        gone = [address for address in had if owners[address] == uid]
        self._change(gone, self._inherited(gone))
        del self._unclaimed[uid]
        left = [address for address in had if owners[address] in {uid, None}]
        self._branches.remove(set(left) - self._inherited(left).keys())

    def _prune(self, enrolled: Collection[Pod]) -> None:
        desired = {address for pod in enrolled for address in self._eligible(pod.addresses)}
        desired.update(*self._claims.values())
        gone = [address for address in self._backend.owners() if address not in desired]
        self._change(gone, {})
        self._branches.prune(desired)
        if gone:
            log.info("host probe set pruned", addresses=[str(a) for a in _sorted(gone)])

    def _change(self, deleted: Collection[IPAddress], added: Owners) -> None:
        if deleted or added:
            self._backend.change(deleted, added)

    def _withdraw_claim(self, uid: PodUID) -> frozenset[IPAddress]:
        """End the claim of `uid`; return what the sets may have for it.

        That stays noted in `_unclaimed`, which the caller deletes when the change is made.
        """
        self._settled.pop(uid, None)
        had = self._unclaimed.get(uid, frozenset()) | self._claims.pop(uid, frozenset())
        self._unclaimed[uid] = had
        return had

    def _inherited(self, addresses: Iterable[IPAddress]) -> dict[IPAddress, str]:
        """Those of `addresses` that another pod claims, for the latest that does."""
        return {
            address: uid
            for uid, claimed in self._claims.items()
            for address in addresses
            if address in claimed
        }

    def _eligible(self, addresses: Iterable[IPAddress]) -> Iterator[IPAddress]:
        """The addresses that a probe from this host can be sent to, as they are in packets."""
        for address in addresses:
            plain = _plain(address)
            # No packet for one of the last three ever leaves the host for a pod.
            if plain.version in self.rules.versions and not (
                plain.is_loopback or plain.is_unspecified or plain.is_multicast
            ):
                yield plain


def _plain(address: IPAddress) -> IPAddress:
    """The address as it is in a packet: IPv4 where it was mapped, and without a zone."""
    if isinstance(address, IPv6Address):
        return address.ipv4_mapped or IPv6Address(int(address))
    return address


def _sorted(addresses: Iterable[IPAddress]) -> list[IPAddress]:
    return sorted(addresses, key=lambda address: (address.version, int(address)))
