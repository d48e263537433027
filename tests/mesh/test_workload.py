"""What a workload says of itself: to ztunnel's snapshot, to the plugin, to people."""

import asyncio

import pytest

from nodeagent.mesh.annotation import PodAnnotation
from nodeagent.mesh.eligibility import Decision, Wanted
from nodeagent.mesh.held import HeldNetns
from nodeagent.mesh.progress import State
from nodeagent.mesh.workload import Workload
from tests.mesh.node import Held, Node
from tests.mesh.pods import SANDBOX, a_pod


def a_workload(wanted: Wanted = Wanted.YES, *, existing: bool = False) -> Workload[Held]:
    pod = a_pod()
    return Workload(
        seen=pod,
        decision=Decision(wanted, "a reason"),
        existing=existing,
        annotation=PodAnnotation(pod),
    )


@pytest.mark.parametrize("wanted", Wanted)
@pytest.mark.parametrize("existing", [True, False])
@pytest.mark.parametrize("outside", [True, False])
def test_kept(wanted: Wanted, *, existing: bool, outside: bool) -> None:
    """L31: ztunnel keeps whatever is in the mesh, may be, or may have been and is not out yet."""
    workload = a_workload(wanted, existing=existing)
    workload.progress.known_outside = outside
    assert workload.kept is (wanted is not Wanted.NO or (existing and not outside))
    workload.gone = True
    assert not workload.kept


def test_addresses_are_the_sandboxs() -> None:
    """The API server knows the addresses of a new sandbox only later."""
    workload = a_workload()
    assert workload.pod.addresses == workload.seen.addresses
    workload.sandbox = SANDBOX
    assert workload.pod.addresses == SANDBOX.addresses


def test_netns_that_is_released_leaves_nothing_behind() -> None:
    """Whatever was known of it goes with it: none of that is true of the next one."""
    workload, node = a_workload(), Node()
    held = workload.progress.held = HeldNetns(Held(node, 1))
    held.accepted, held.verified, held.uncleaned = True, 1.0, "a reason"
    said = workload.describe()
    assert (said["netns"], said["verified"], said["uncleaned"]) == ("1", 1.0, "a reason")
    workload.progress.release_netns()
    assert (node.open, workload.netns) == ([], None)
    said = workload.describe()
    assert (said["netns"], said["verified"], said["uncleaned"]) == (None, None, "")


def test_change_of_state_is_news_once() -> None:
    """Since when counts from the change of the state; another reason does not begin it anew."""
    progress = a_workload().progress
    progress.since = 0.0
    assert progress.set_state(State.WAITING, "for one thing")
    since = progress.since
    assert since > 0
    assert progress.set_state(State.WAITING, "for another")
    assert not progress.set_state(State.WAITING, "for another")
    assert progress.since == since


@pytest.mark.virtual_time
async def test_until_looks_after_each_attempt() -> None:
    """Who waits for a state hears of it when an attempt is over, not in the middle of one."""
    workload = a_workload()
    waiting = asyncio.create_task(workload.until(lambda each: each.state is State.ENROLLED))
    workload.progress.attempt_ended()
    await asyncio.sleep(1)
    workload.progress.set_state(State.ENROLLED, "")
    await asyncio.sleep(1)
    assert not waiting.done()
    workload.progress.attempt_ended()
    await waiting
