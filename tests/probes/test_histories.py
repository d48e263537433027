"""Any order of pods that come, go and swap addresses, against a model of the probe set."""

import asyncio
import contextlib
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodeagent.mesh.pod import IPAddress, PodUID
from nodeagent.netns.threads import NetnsThreads
from tests.lab.host import TABLE, Host, enrolled, new_host, probes_of

UIDS = st.sampled_from("abc")
ADDRESSES = st.frozensets(
    st.sampled_from(["10.1.0.1", "10.1.0.2", "10.1.0.3", "fd00::1", "fd00::2"]), max_size=3
)
STEPS = st.one_of(
    st.tuples(st.just("ensure"), UIDS, ADDRESSES),
    st.tuples(st.just("ensure"), UIDS, ADDRESSES),
    st.tuples(st.just("remove"), UIDS),
    st.tuples(st.just("prune"), st.booleans()),
    st.tuples(st.just("lose element"), st.integers(0, 4)),
    st.tuples(st.just("lose table")),
    st.tuples(st.just("restart")),
)


@dataclass
class Model:
    """What the specification says."""

    pods: dict[str, frozenset[IPAddress]] = field(default_factory=dict)
    """The enrolled ones with their last known addresses, the latest look last."""
    owners: dict[IPAddress, str] = field(default_factory=dict)
    table: bool = True

    def ensure(self, uid: str, addresses: frozenset[IPAddress]) -> None:
        before = self.pods.get(uid, frozenset())
        if addresses:
            self.pods.pop(uid, None)
            self.pods[uid] = addresses
        if not self.table:
            self.table = True
            for pod, known in self.pods.items():
                self.owners |= dict.fromkeys(known, pod)
        for address in self.pods.get(uid, ()):
            if addresses or address not in self.owners:
                self.owners[address] = uid
        self._release(uid, before - self.pods.get(uid, frozenset()))

    def remove(self, uid: str) -> None:
        self._release(uid, self.pods.pop(uid, frozenset()))

    def _release(self, uid: str, addresses: frozenset[IPAddress]) -> None:
        for address in addresses:
            if self.owners.get(address) == uid:
                del self.owners[address]
                for pod, known in self.pods.items():
                    if address in known:
                        self.owners[address] = pod


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with new_host() as host:
        yield host


@pytest.fixture(scope="module")
def threads() -> Iterator[NetnsThreads]:
    with contextlib.closing(NetnsThreads(1)) as threads:
        yield threads


async def play(steps: list[tuple[Any, ...]], host: Host, threads: NetnsThreads) -> None:
    model = Model()
    host.nft("flush ruleset")
    async with AsyncExitStack() as life:
        probes = await life.enter_async_context(probes_of(host, threads))
        await probes.start()
        for kind, *arguments in steps:
            match kind:
                case "ensure":
                    uid, addresses = arguments
                    pod = enrolled(uid, *sorted(addresses))
                    await probes.ensure(pod)
                    model.ensure(uid, frozenset(pod.addresses))
                    assert await probes.ensure(pod) == (), "it does not last"
                case "remove":
                    await probes.remove(PodUID(arguments[0]))
                    model.remove(arguments[0])
                case "prune":
                    # Nothing stands that no pod has, so a prune, allowed or not, takes nothing.
                    unknown = [enrolled("new")] if arguments[0] else []
                    await probes.prune(
                        [*(enrolled(uid, *known) for uid, known in model.pods.items()), *unknown]
                    )
                case "lose element" if model.owners:
                    address = sorted(model.owners, key=str)[arguments[0] % len(model.owners)]
                    host.nft(
                        f"delete element {TABLE} istio-inpod-probes-v{address.version} "
                        f"{{ {address} }}"
                    )
                    del model.owners[address]
                case "lose table":
                    host.nft("flush ruleset")
                    model.table = False
                    model.owners.clear()
                case "restart":
                    await life.aclose()
                    probes = await life.enter_async_context(probes_of(host, threads))
                    await probes.start()
                    model.table = True
                    # As the agent does: what is enrolled is looked at again.
                    for uid, known in list(model.pods.items()):
                        await probes.ensure(enrolled(uid, *known))
                        model.ensure(uid, known)
            assert (host.owners() if model.table else {}) == model.owners, kind
        for uid in "abc":
            await probes.remove(PodUID(uid))
        assert not model.table or host.owners() == {}


@settings(max_examples=50, deadline=None)
@given(steps=st.lists(STEPS, max_size=20))
def test_any_history(steps: list[tuple[Any, ...]], host: Host, threads: NetnsThreads) -> None:
    """L9, L27: whatever comes in whatever order, the set is the pods' as the last word was."""
    asyncio.run(play(steps, host, threads))
