"""What is remembered of pods, and that all of it is bounded."""

from nodeagent.mesh.history import CROWD, ENDED, LONGEST_REASON, OF_A_CROWD, OF_A_POD, History
from nodeagent.mesh.pod import PodUID
from nodeagent.mesh.progress import State
from tests.eventually import eventually
from tests.mesh.node import Node, bench
from tests.mesh.pods import SHOP, a_pod, enrolled


def texts(history: History, uid: str = "1") -> list[str]:
    return [each.what for record in history if record.uid == uid for each in record.transitions]


def test_only_the_last_transitions_stay() -> None:
    """However many a pod makes, what it costs is bounded, text included."""
    history = History()
    of_a_pod = history.begin(a_pod())
    for number in range(10 * OF_A_POD):
        of_a_pod.note(f"state {number}", "x" * 10 * LONGEST_REASON)
    (record,) = history
    assert len(record.transitions) == OF_A_POD
    assert record.transitions[-1].what == f"state {10 * OF_A_POD - 1}"
    assert {len(each.why) for each in record.transitions} == {LONGEST_REASON}


def test_what_repeats_is_counted() -> None:
    """A rule that is deleted each second does not push out how the pod came into the mesh."""
    history = History()
    of_a_pod = history.begin(a_pod())
    of_a_pod.note("enrolled", "")
    for number in range(1000):
        of_a_pod.note("repaired", f"rule {number}")
    (record,) = history
    enrolled_, repaired = record.transitions
    assert (enrolled_.what, repaired.times, repaired.why) == ("enrolled", 1000, "rule 999")
    assert repaired.first <= repaired.last


def test_ended_pods_are_remembered_for_some_time() -> None:
    """A pod that has ended is still explained; thousands of them are not kept."""
    history = History()
    for number in range(10 * ENDED):
        history.begin(a_pod(str(number))).note("gone", "")
        history.end(PodUID(str(number)))
    assert [record.uid for record in history] == [str(n) for n in range(9 * ENDED, 10 * ENDED)]


def test_pod_that_comes_back_goes_on() -> None:
    """A UID that is seen again (a folder of manifests) is the same pod."""
    history = History()
    history.begin(a_pod()).note("gone", "")
    history.end(PodUID("1"))
    history.begin(a_pod()).note("new", "")
    assert texts(history) == ["gone", "new"]


def test_each_of_very_many_pods_has_less() -> None:
    """The number of all transitions is bounded by that of the pods, and grows slowly."""
    history = History()
    for number in range(CROWD + 1):
        of_a_pod = history.begin(a_pod(str(number)))
        for step in range(OF_A_POD):
            of_a_pod.note(str(step), "")
    kept = [len(record.transitions) for record in history]
    assert kept == [OF_A_POD] * CROWD + [OF_A_CROWD]


async def test_life_of_a_pod() -> None:
    """Every change of a pod's state is there with its reason, a repair, and the pod's end."""
    async with bench(Node()) as on:
        on.table.namespace_seen(SHOP)
        on.table.pod_seen(a_pod(addresses=()))
        await on.until_state("1", State.WAITING)
        await enrolled(on)
        on.node.rules.clear()
        on.table.drifted(PodUID("1"))
        await eventually(lambda: on.repairs("1") == 1)
        on.table.pod_gone(PodUID("1"))
        await eventually(lambda: len(on.table) == 0)
        assert texts(on.table.history) == ["waiting", "enrolled", "repaired", "gone"]
        (record,) = on.table.history
        assert record.transitions[0].why == "has no address yet"
        assert record.transitions[2].why == "rules differed"
