"""The life of a pod in the heart, with everything around it able to fail."""

import asyncio
import time
from collections import defaultdict
from collections.abc import MutableMapping
from dataclasses import replace
from ipaddress import IPv4Address
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from nodeagent.mesh import enrollment, worker
from nodeagent.mesh.annotation import Redirection
from nodeagent.mesh.backoff import FIRST, LONGEST, Backoff
from nodeagent.mesh.eligibility import Wanted
from nodeagent.mesh.errors import GiveUpError, RetryError, TransientError
from nodeagent.mesh.pod import REDIRECTION, SIDECAR_STATUS, Namespace, Pod, PodUID
from nodeagent.mesh.progress import State
from nodeagent.mesh.sandbox import Sandbox
from tests.eventually import eventually
from tests.mesh.node import Bench, Node, bench
from tests.virtual_time import run_virtually

pytestmark = pytest.mark.virtual_time

AMBIENT = {"istio.io/dataplane-mode": "ambient"}
SHOP = Namespace("shop")
ENABLED = {REDIRECTION: "enabled"}
U1 = PodUID("1")


def a_pod(uid: str = "1", **changes: object) -> Pod:
    pod = Pod(
        uid=PodUID(uid),
        name="web",
        namespace="shop",
        labels=AMBIENT,
        addresses=(IPv4Address("10.0.0.1"),),
        phase="Pending",
    )
    return replace(pod, **changes)  # type: ignore[arg-type]


async def enrolled(on: Bench, uid: str = "1") -> None:
    on.node.namespaces.setdefault(PodUID(uid), int(uid))
    on.table.namespace_seen(SHOP)
    on.table.pod_seen(a_pod(uid))
    await on.until_state(uid, State.ENROLLED)


async def test_order_of_an_enrollment() -> None:
    """L2: namespace, rules, ztunnel, probes, and the annotation last."""
    async with bench(Node()) as on:
        await enrolled(on)
        assert on.node.did("1") == ["find", "ensure", "offer", "probe", "report enabled"]


async def test_order_of_a_removal() -> None:
    """A pod that leaves while it runs: probes, rules, ztunnels, annotation, descriptor."""
    async with bench(Node()) as on:
        await enrolled(on)
        on.node.steps.clear()
        on.table.pod_seen(a_pod(labels={}))
        await on.until_state("1", State.OUTSIDE)
        assert on.node.did("1") == ["unprobe", "remove", "withdraw", "report None"]
        assert on.node.open == []


async def test_leaving_pod_keeps_what_is_open() -> None:
    """L28: the annotation goes first, nothing new is sent, and rules go when all has ended."""
    node = Node(connections=2)
    async with bench(node, removal_grace=60) as on:
        await enrolled(on)
        node.steps.clear()
        on.table.pod_seen(a_pod(labels={}))
        await on.until_state("1", State.LEAVING)
        assert node.did("1") == ["report None", "release"]
        assert (node.rules, node.ztunnel) == ({1}, {U1: 1})
        node.connections = 0
        on.table.wake(U1)
        await on.until_state("1", State.OUTSIDE)
        assert (node.rules, node.ztunnel, node.open) == (set(), {}, [])


async def test_leaving_pod_is_not_waited_for_without_end() -> None:
    """L28: when the deadline has passed, what is still open is cut."""
    node = Node(connections=2)
    async with bench(node, removal_grace=0.05) as on:
        await enrolled(on)
        on.table.pod_seen(a_pod(labels={}))
        await on.until_state("1", State.OUTSIDE)
        assert node.did("1").count("release") == 2
        assert node.rules == set()


async def test_leaving_pod_that_comes_back() -> None:
    """A label that comes back while connections are still open enrolls the pod again."""
    node = Node(connections=2)
    async with bench(node, removal_grace=60) as on:
        await enrolled(on)
        on.table.pod_seen(a_pod(labels={}))
        await on.until_state("1", State.LEAVING)
        on.table.pod_seen(a_pod())
        await on.until_state("1", State.ENROLLED)
        assert node.annotations == {U1: Redirection.ENABLED}
        assert on.repairs("1") == 0


async def test_order_of_a_release(monkeypatch: pytest.MonkeyPatch) -> None:
    """At an uninstall peers hear first: annotation, time to hear, rules, ztunnels, probes last."""
    monkeypatch.setattr(enrollment, "ANNOTATION_PROPAGATION", 0.05)
    node = Node(undelivered={U1})
    async with bench(node) as on:
        await enrolled(on)
        on.node.steps.clear()
        releasing = asyncio.create_task(on.reconciler.release(5))
        await on.until_state("1", State.RETRYING)
        assert node.did("1") == ["report None"], "the API has not taken it yet"
        node.undelivered.clear()
        assert await releasing == []
        assert node.did("1") == [
            "report None", "release", "release", "remove", "withdraw", "unprobe"
        ]  # fmt: skip
        assert (node.rules, node.open, node.probed) == (set(), [], set())
        on.table.pod_seen(a_pod("2"))
        await on.until_state("2", State.OUTSIDE)


async def test_release_that_the_api_does_not_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peers that cannot be told send HBONE still: such a pod stays in the mesh, as it was."""
    monkeypatch.setattr(enrollment, "ANNOTATION_PROPAGATION", 0.0)
    node = Node(undelivered={U1})
    async with bench(node) as on:
        await enrolled(on)
        [row] = await on.reconciler.release(0.1)
        assert row.uid == U1
        assert (node.rules, node.ztunnel, node.probed) == ({1}, {U1: 1}, {U1})
        assert node.annotations == {U1: Redirection.ENABLED}


async def test_pod_that_is_gone_is_not_entered() -> None:
    """A pod that is gone is told to ztunnel and let go of; its namespace is left alone."""
    async with bench(Node()) as on:
        await enrolled(on)
        on.node.steps.clear()
        on.table.pod_gone(U1)
        await on.settled()
        assert on.node.did("1") == ["unprobe", "withdraw"]
        assert (on.node.open, len(on.table)) == ([], 0)
        assert on.node.annotations == {}


async def test_namespace_that_is_not_known_yet() -> None:
    """L4: it is a visible state with its reason, and tried until it is found."""
    node = Node()
    async with bench(node) as on:
        on.table.namespace_seen(SHOP)
        on.table.pod_seen(a_pod())
        await on.until_state("1", State.RETRYING)
        assert on.row("1").detail == "no such namespace"
        assert on.table.kept() == [U1], "ztunnel keeps what it may have from before"
        node.namespaces[U1] = 1
        await on.until_state("1", State.ENROLLED)


async def test_refusal_is_pending_until_accepted() -> None:
    """An Ack with an error leaves the pod redirected and pending; it is offered again."""
    node = Node(namespaces={U1: 1}, refusing=True)
    async with bench(node) as on:
        on.table.namespace_seen(SHOP)
        on.table.pod_seen(a_pod())
        await on.until_state("1", State.RETRYING)
        assert (node.annotations, node.rules) == ({U1: Redirection.PENDING}, {1})
        assert node.probed == {U1}, "its probes do not need ztunnel"
        node.refusing = False
        await on.until_state("1", State.ENROLLED)
        assert node.annotations == {U1: Redirection.ENABLED}


async def test_refusal_does_not_take_enabled_back() -> None:
    """L41: peers would send plain text to the pod; its rules refuse that, the lesser harm."""
    async with bench(Node()) as on:
        await enrolled(on)
        on.node.refusing = True
        on.table.wake(U1)
        await on.until_state("1", State.RETRYING)
        on.node.refusing = False
        await on.until_state("1", State.ENROLLED)
        assert on.node.written == {U1: [Redirection.ENABLED]}


async def test_late_echo_does_not_take_enabled_back() -> None:
    """L41: the annotation of a while ago, which the watch brings late, is not what was written."""
    node = Node(namespaces={U1: 1}, ztunnel=None)
    async with bench(node) as on:
        on.table.namespace_seen(SHOP)
        on.table.pod_seen(a_pod())
        await on.until_state("1", State.PENDING)
        node.ztunnel = {}
        on.table.wake(U1)
        await on.until_state("1", State.ENROLLED)
        node.refusing = True
        on.table.pod_seen(a_pod(annotations={REDIRECTION: "pending"}))
        await on.until_state("1", State.RETRYING)
        written = node.written[U1]
        assert written[0] is Redirection.PENDING
        assert set(written[1:]) == {Redirection.ENABLED}


@pytest.mark.parametrize("fault", ["refuses", "is away after a reboot", "does not listen"])
async def test_promise_that_is_not_kept_is_told(
    fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """L41: where the truth differs from `enabled` for a while, an event says so, once."""
    monkeypatch.setattr(worker, "REPORT_BROKEN_AFTER", 0.02)
    node = Node(namespaces={U1: 1})
    match fault:
        case "refuses":
            node.refusing = True
        case "is away after a reboot":
            node.ztunnel = None
        case _:
            node.rules, node.silent = {1}, (15001,)
    async with bench(node, verify_interval=0.01) as on:
        on.table.namespace_seen(SHOP)
        on.table.pod_seen(a_pod(annotations=ENABLED))

        def told() -> list[str]:
            return [step for step in node.did("1") if step.startswith("broken: ")]

        await eventually(lambda: bool(told()))
        looks = len(node.steps)
        await eventually(lambda: len(node.steps) > looks + 10)
        assert len(told()) == 1
        assert node.written == {}
        node.refusing, node.silent = False, ()
        node.ztunnel = {} if node.ztunnel is None else node.ztunnel
        await on.until_state("1", State.ENROLLED)
        node.refusing = True
        await eventually(lambda: len(told()) == 2)


async def test_short_gap_is_not_told() -> None:
    """L41: a ztunnel that restarts is no event on each of its pods."""
    async with bench(Node(silent=(15001,)), verify_interval=0.01) as on:
        await enrolled(on)
        await on.until_state("1", State.UNSERVED)
        on.node.silent = ()
        await on.until_state("1", State.ENROLLED)
        assert not [step for step in on.node.did("1") if step.startswith("broken")]


async def test_without_ztunnel() -> None:
    """No ztunnel: redirected and pending, not retried in vain; woken, it is handed over."""
    node = Node(namespaces={U1: 1}, ztunnel=None)
    async with bench(node) as on:
        on.table.namespace_seen(SHOP)
        on.table.pod_seen(a_pod())
        await on.until_state("1", State.PENDING)
        await on.settled()
        assert node.did("1") == ["find", "ensure", "offer", "probe", "report pending"]
        node.ztunnel = {}
        on.table.wake(U1)
        await on.until_state("1", State.ENROLLED)


async def test_ztunnel_that_stops_changes_nothing() -> None:
    """While ztunnel is away, an accepted pod stays enrolled and nothing is annotated anew."""
    async with bench(Node()) as on:
        await enrolled(on)
        on.node.ztunnel = None
        on.node.steps.clear()
        on.table.wake(U1)
        await on.settled()
        assert on.node.did("1") == ["find", "ensure", "offer", "probe"]
        assert on.row("1").state is State.ENROLLED


async def test_ztunnel_that_does_not_listen() -> None:
    """L1: an accepted pod on whose ports nobody listens is not called enrolled."""
    async with bench(Node(silent=(15001, 15006))) as on:
        await enrolled(on)
        on.table.wake(U1)
        await on.until_state("1", State.UNSERVED)
        assert "15001, 15006" in on.row("1").detail
        on.node.silent = ()
        on.table.wake(U1)
        await on.until_state("1", State.ENROLLED)


async def test_agent_restart_reports_nothing_anew() -> None:
    """L24: rules that are right and an annotation that says so need neither write nor patch."""
    node = Node(namespaces={U1: 1}, rules={1}, ztunnel=None)
    async with bench(node) as on:
        on.table.namespace_seen(SHOP)
        on.table.pod_seen(a_pod(annotations=ENABLED))
        await on.until_state("1", State.ENROLLED)
        assert node.annotations == {}


async def test_reboot_does_not_believe_the_annotation() -> None:
    """L41: after a reboot it says enabled and no rule stands: pending, but only as a state."""
    node = Node(namespaces={U1: 1}, ztunnel=None)
    async with bench(node) as on:
        on.table.namespace_seen(SHOP)
        on.table.pod_seen(a_pod(annotations=ENABLED))
        await on.until_state("1", State.PENDING)
        assert (node.written, node.rules) == ({}, {1})


async def test_rules_of_another_layout_at_the_start() -> None:
    """L41: an upgrade that changes the rules takes no working pod back to pending."""
    node = Node(namespaces={U1: 1}, rules={1}, outdated={1}, ztunnel=None)
    async with bench(node) as on:
        on.table.namespace_seen(SHOP)
        on.table.pod_seen(a_pod(annotations=ENABLED))
        await on.until_state("1", State.PENDING)
        node.ztunnel = {}
        on.table.wake(U1)
        await on.until_state("1", State.ENROLLED)
        assert node.written == {}


async def test_lost_rules_are_found_and_mended() -> None:
    """L1: an enrolled pod is compared with intent all its life; what was lost comes back."""
    async with bench(Node(), verify_interval=0.01) as on:
        await enrolled(on)
        on.node.rules.clear()
        await eventually(lambda: bool(on.node.rules))
        await on.until_state("1", State.ENROLLED)
        assert on.repairs("1") == 1


async def test_change_in_the_namespace_is_looked_at() -> None:
    """What the watch hears is looked at immediately, and mended."""
    async with bench(Node()) as on:
        await enrolled(on)
        on.node.rules.clear()
        heard = asyncio.get_running_loop().time()
        on.table.drifted(U1)
        await eventually(lambda: on.node.rules == {1})
        assert asyncio.get_running_loop().time() - heard < FIRST
        assert on.repairs("1") == 1
        on.table.drifted(PodUID("unknown"))


async def test_contested_pod_is_reported_now_and_then() -> None:
    """Rules that somebody takes out again and again are reported, less and less often."""
    async with bench(Node()) as on:
        await enrolled(on)
        for count in range(1, 12):
            on.node.rules.clear()
            on.table.wake(U1)
            await eventually(lambda count=count: on.repairs("1") == count)  # type: ignore[misc]
        reports = [step for step in on.node.did("1") if step.startswith("contested")]
        assert reports == ["contested 5", "contested 10"]


async def test_changes_without_end_are_looked_at_less_often() -> None:
    """Two components never fight at full speed; the last change is looked at all the same."""
    async with bench(Node()) as on:
        await enrolled(on)
        on.node.steps.clear()
        for _ in range(200):
            on.node.rules.clear()
            on.table.drifted(U1)
            await asyncio.sleep(0.001)
        assert on.node.did("1").count("ensure") < 20
        await eventually(lambda: on.node.rules == {1})


async def test_changed_annotation_is_not_drift() -> None:
    """Rules that change because the pod asks for it are not counted as mended."""
    async with bench(Node()) as on:
        await enrolled(on)
        on.node.rules.clear()
        on.table.pod_seen(a_pod(annotations={"ambient.istio.io/dns-capture": "false"}))
        await on.settled()
        assert (on.node.rules, on.repairs("1")) == ({1}, 0)


async def test_sandbox_made_again() -> None:
    """L14: the same UID in a new namespace is enrolled there, and the old one is let go."""
    async with bench(Node()) as on:
        await enrolled(on)
        on.node.namespaces[U1] = 2
        on.table.wake(U1)
        await on.settled()
        assert on.node.ztunnel == {U1: 2}
        assert [held.id for held in on.node.open] == [2]


async def test_address_that_is_missing_for_a_moment() -> None:
    """L9: an enrolled pod that has no address for a moment stays enrolled; a new one waits."""
    async with bench(Node(namespaces={PodUID("2"): 2})) as on:
        await enrolled(on)
        on.table.pod_seen(a_pod(addresses=()))
        on.table.pod_seen(a_pod("2", addresses=()))
        await on.until_state("2", State.WAITING)
        await on.settled()
        assert on.row("1").state is State.ENROLLED
        assert on.node.did("2") == []


async def test_namespace_that_is_unknown_for_a_moment() -> None:
    """L16: not knowing a pod's Kubernetes namespace does not take it out of the mesh."""
    async with bench(Node(namespaces={U1: 1})) as on:
        on.table.namespace_seen(Namespace("shop", AMBIENT))
        on.table.pod_seen(a_pod(labels={}))
        await on.until_state("1", State.ENROLLED)
        on.table.namespace_gone("shop")
        await on.settled()
        assert on.row("1").state is State.ENROLLED
        on.table.namespace_seen(SHOP)
        await on.until_state("1", State.OUTSIDE)


async def test_fault_that_trying_again_cannot_mend() -> None:
    """It is reported once and rests; a change of the pod starts it anew."""
    node = Node(namespaces={U1: 1})
    node.failures["find"] = [GiveUpError("is the host's")] * 2
    async with bench(node) as on:
        on.table.namespace_seen(SHOP)
        on.table.pod_seen(a_pod())
        await on.until_state("1", State.FAILED)
        await on.settled()
        assert node.did("1") == ["find"]
        on.table.pod_seen(a_pod(labels=AMBIENT | {"v": "2"}))
        await on.settled()
        assert node.failed_for_good == ["shop/web: is the host's"]
        on.table.pod_seen(a_pod(labels=AMBIENT | {"v": "3"}))
        await on.until_state("1", State.ENROLLED)


async def test_failure_of_ours_is_not_the_end() -> None:
    """An exception that nobody foresaw is one pod's retry, not the agent's end."""
    node = Node(namespaces={U1: 1})
    node.failures["ensure"] = [ZeroDivisionError("a fault")]
    async with bench(node) as on:
        await enrolled(on)


async def test_one_bad_pod_delays_nobody() -> None:
    """L13: while one pod fails again and again, others are enrolled."""
    async with bench(Node(namespaces={PodUID("2"): 2})) as on:
        on.table.namespace_seen(SHOP)
        on.table.pod_seen(a_pod("1"))
        await on.until_state("1", State.RETRYING)
        on.table.pod_seen(a_pod("2"))
        await on.until_state("2", State.ENROLLED)


async def test_thousands_at_the_same_moment() -> None:
    """L5: three thousand pods that come at once are all enrolled, each once."""
    uids = [str(n) for n in range(3000)]
    node = Node(namespaces={PodUID(uid): int(uid) for uid in uids})
    async with bench(node) as on:
        on.table.namespace_seen(SHOP)
        for uid in uids:
            on.table.pod_seen(a_pod(uid))
        for uid in uids:
            await on.until_state(uid, State.ENROLLED)
        assert len(node.steps) == 5 * len(uids)


async def test_same_name_is_another_pod() -> None:
    """Deleted and created again under its name: late news of the old one hurts nobody."""
    async with bench(Node(namespaces={U1: 1, PodUID("2"): 2})) as on:
        await enrolled(on, "1")
        on.table.pod_seen(a_pod("2"))
        on.table.pod_gone(U1)
        await on.settled()
        assert on.node.ztunnel == {"2": 2}


async def test_rules_that_a_former_agent_left() -> None:
    """A pod whose label came off while no agent ran is found at the start and set free."""
    node = Node(namespaces={U1: 1}, rules={1})
    async with bench(node) as on:
        on.table.namespace_seen(SHOP)
        on.table.pod_seen(a_pod(labels={}))
        on.table.synced()
        await on.until_state("1", State.OUTSIDE)
        assert (node.rules, node.open) == (set(), [])


async def test_pod_that_was_never_labeled() -> None:
    """Fail safe: it is not looked for and not entered, whatever it says of itself."""
    async with bench(Node(namespaces={U1: 1, PodUID("2"): 2})) as on:
        on.table.synced()
        on.table.namespace_seen(SHOP)
        on.table.pod_seen(a_pod(labels={}))
        on.table.pod_seen(a_pod("2", labels={}, annotations=ENABLED))
        await on.until_state("1", State.OUTSIDE)
        await on.until_state("2", State.OUTSIDE)
        assert on.node.did("1") == ["withdraw"]
        assert on.node.did("2") == ["withdraw", "report None"]


@pytest.mark.parametrize("annotations", [{}, ENABLED])
async def test_pod_with_a_sidecar_is_never_entered(annotations: dict[str, str]) -> None:
    """L30: what redirects a pod with a sidecar is the sidecar's, also at the agent's start."""
    async with bench(Node(namespaces={U1: 1}, rules={1})) as on:
        on.table.namespace_seen(SHOP)
        on.table.pod_seen(a_pod(annotations={SIDECAR_STATUS: "{}", **annotations}))
        await on.until_state("1", State.OUTSIDE)
        assert not {"find", "ensure", "inspect"} & set(on.node.did("1"))
        assert (on.node.rules, on.table.kept()) == ({1}, [])


@pytest.mark.parametrize("step", ["remove", "release"])
async def test_pod_that_never_was_in_the_mesh_is_not_looked_through_for_ever(step: str) -> None:
    """L30: a look for an earlier agent's rules that fails is no error of a pod without any."""
    node = Node(namespaces={U1: 1})
    node.failures[step] = [RetryError("refused")] * 100
    async with bench(node, removal_grace=60) as on:
        on.table.namespace_seen(SHOP)
        on.table.pod_seen(a_pod(labels={}))
        await on.until_state("1", State.OUTSIDE)
        assert (node.open, on.table.kept()) == ([], [])


@pytest.mark.parametrize("step", ["remove", "release"])
async def test_pod_that_was_in_the_mesh_is_freed_however_long_it_takes(step: str) -> None:
    """L30: nothing of ours stays because a look has failed a few times."""
    node = Node(namespaces={U1: 1}, rules={1})
    node.failures[step] = [RetryError("refused")] * 7
    async with bench(node, removal_grace=60) as on:
        on.table.namespace_seen(SHOP)
        on.table.pod_seen(a_pod(labels={}, annotations=ENABLED))
        await on.until_state("1", State.OUTSIDE)
        assert (node.rules, node.written[U1]) == (set(), [None])


async def test_pod_of_which_only_a_part_was_redirected_is_freed() -> None:
    """L30: what the agent has begun itself it takes out, however long that takes."""
    node = Node(namespaces={U1: 1}, rules={1})
    node.failures["ensure"] = [RetryError("no route")] * 100
    node.failures["remove"] = [RetryError("refused")] * 7
    async with bench(node) as on:
        on.table.namespace_seen(SHOP)
        on.table.pod_seen(a_pod())
        await eventually(lambda: on.row("1").progress.attempts > 5)
        on.table.pod_seen(a_pod(labels={}))
        await on.until_state("1", State.OUTSIDE)
        assert node.rules == set()


async def test_pod_that_left_without_an_address_waits_for_one() -> None:
    """L9: its rules stay until its namespace can be told, and ztunnel keeps it meanwhile."""
    node = Node(namespaces={U1: 1}, rules={1})
    async with bench(node) as on:
        on.table.namespace_seen(SHOP)
        on.table.pod_seen(a_pod(labels={}, annotations=ENABLED, addresses=()))
        await on.until_state("1", State.WAITING)
        await on.settled()
        assert (node.steps, on.table.kept()) == ([], [U1])
        on.table.pod_seen(a_pod(labels={}, annotations=ENABLED))
        await on.until_state("1", State.OUTSIDE)
        assert (node.rules, on.table.kept()) == (set(), [])


async def test_one_namespace_is_one_pods() -> None:
    """L39: a namespace that is held for another pod is refused, told once, and left alone."""
    async with bench(Node(namespaces={PodUID("2"): 1})) as on:
        await enrolled(on)
        on.table.pod_seen(a_pod("2", name="other"))
        await on.until_state("2", State.RETRYING)
        await eventually(lambda: on.node.did("2").count("find") > 2)
        assert set(on.node.did("2")) == {"find", "conflict over 1 with 1"}
        assert on.node.did("2").count("conflict over 1 with 1") == 1
        assert (on.node.ztunnel, [held.id for held in on.node.open]) == ({U1: 1}, [1])
        on.node.namespaces[PodUID("2")] = 2
        await on.until_state("2", State.ENROLLED)


async def test_pod_that_leaves_does_not_take_anothers_rules_with_it() -> None:
    """L39: a pod outside of the mesh whose look leads to a mesh pod's namespace frees nobody."""
    node = Node(namespaces={PodUID("2"): 1})
    async with bench(node) as on:
        await enrolled(on)
        on.table.pod_seen(a_pod("2", name="other", labels={}, annotations=ENABLED))
        await on.until_state("2", State.OUTSIDE)
        assert "conflict over 1 with 1" in node.did("2")
        assert (node.rules, [held.id for held in node.open]) == ({1}, [1])


async def test_static_pods_mirror_is_made_anew() -> None:
    """L39: the same sandbox under the next UID is no conflict: the old row lets go first."""
    async with bench(Node(namespaces={PodUID("2"): 1})) as on:
        await enrolled(on)
        on.table.pod_seen(a_pod("2"))
        await on.until_state("2", State.RETRYING)
        on.table.pod_gone(U1)
        await on.until_state("2", State.ENROLLED)
        assert not [step for step in on.node.did("2") if step.startswith("conflict")]
        assert on.node.ztunnel == {"2": 1}


STEPS = st.one_of(
    st.tuples(st.just("see"), st.sampled_from("123"), st.booleans(), st.booleans()),
    st.tuples(st.just("gone"), st.sampled_from("123")),
    st.tuples(st.just("namespace"), st.sampled_from(["plain", "ambient", "unknown"])),
    st.tuples(st.just("sandbox"), st.sampled_from("123"), st.integers(10, 12)),
    st.tuples(st.just("ztunnel"), st.sampled_from(["away", "there", "refusing"])),
    st.tuples(
        st.just("fail"),
        st.sampled_from(["find", "ensure", "offer", "withdraw", "probe", "unprobe"]),
    ),
    st.tuples(st.just("turns"), st.integers(1, 12)),
    st.tuples(st.just("ended"), st.sampled_from("123")),
    st.tuples(st.just("echo"), st.sampled_from("123")),
)


class History:
    """Plays news and faults, and knows how it must end."""

    def __init__(self, on: Bench) -> None:
        self.on = on
        self.pods: dict[PodUID, bool] = {}
        self.ambient = False
        self.heard: dict[PodUID, int] = defaultdict(int)
        """How many of the values that were written to a pod's annotation the watch has brought."""

    def see(self, uid: str, labeled: bool, addressed: bool) -> None:
        self.pods[PodUID(uid)] = labeled
        self.on.node.namespaces.setdefault(PodUID(uid), int(uid))
        changes: dict[str, object] = {} if addressed else {"addresses": ()}
        heard = self.on.node.written[PodUID(uid)][: self.heard[PodUID(uid)]]
        if heard and (value := heard[-1]):
            changes["annotations"] = {REDIRECTION: value.value}
        self.on.table.pod_seen(a_pod(uid, labels=AMBIENT if labeled else {}, **changes))

    def begin_after(self, before: "History") -> None:
        """Have the first list brought to another agent: everything as it is now."""
        self.pods, self.ambient = before.pods, before.ambient
        self.heard |= {uid: len(self.on.node.written[uid]) for uid in self.pods}
        self.namespace("ambient" if self.ambient else "plain")
        for uid, labeled in dict(self.pods).items():
            self.see(uid, labeled, addressed=True)
        self.on.table.synced()
        node = self.on.node
        node.probed &= set(self.pods)  # as an agent does once it has its first list
        node.rules &= {node.namespaces[uid] for uid in self.pods}  # the others end with their pods
        self.note_who_left()

    def echo(self, text: str) -> None:
        """Have the watch bring the next value of the annotation, however late."""
        uid = PodUID(text)
        if uid in self.pods and self.heard[uid] < len(self.on.node.written[uid]):
            self.heard[uid] += 1
            self.see(uid, self.pods[uid], addressed=True)

    def note_who_left(self) -> None:
        wanted = {row.uid: row.decision.wanted for row in self.on.table}
        self.on.node.left |= {uid for uid in wanted if wanted[uid] is Wanted.NO}

    def upgrade(self) -> None:
        """Have rules that stand be those of another layout."""
        self.on.node.outdated |= self.on.node.rules

    def reboot(self) -> None:
        """Have nothing stand, as if the machine had been started anew."""
        self.on.node.rules.clear()
        if self.on.node.ztunnel is not None:
            self.on.node.ztunnel.clear()

    def ended(self, uid: str) -> None:
        """Have the runtime take the pod's sandbox down."""
        if (row := self.on.table.get(PodUID(uid))) is not None:
            self.on.table.sandbox_ended(row)

    def gone(self, uid: str) -> None:
        self.pods.pop(PodUID(uid), None)
        self.heard.pop(PodUID(uid), None)
        self.on.node.left.add(PodUID(uid))
        self.on.table.pod_gone(PodUID(uid))

    def namespace(self, kind: str) -> None:
        self.ambient = kind == "ambient"
        if kind == "unknown":
            self.on.table.namespace_gone("shop")
        else:
            self.on.table.namespace_seen(Namespace("shop", AMBIENT if self.ambient else {}))

    def sandbox(self, uid: str, number: int) -> None:
        self.on.node.namespaces[PodUID(uid)] = number * 10 + int(uid)

    def ztunnel(self, kind: str) -> None:
        node = self.on.node
        node.refusing = kind == "refusing"
        if kind == "away":
            node.ztunnel = None
        elif node.ztunnel is None:
            node.ztunnel = {}

    def fail(self, step: str) -> None:
        self.on.node.failures[step].append(RetryError("a fault"))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(STEPS, max_size=25), max_size=3))
def test_any_history(lives: list[list[tuple[str, object]]]) -> None:
    """Level, not edge: after any news in any order, what stands is what is wanted.

    Each list is one life of an agent.
    """
    run_virtually(play(lives))


ONE_PODS = st.one_of(
    st.tuples(st.just("ztunnel"), st.sampled_from(["away", "there", "refusing"])),
    st.tuples(st.just("sandbox"), st.just("1"), st.integers(10, 12)),
    st.tuples(st.just("ended"), st.just("1")),
    st.tuples(st.just("echo"), st.just("1")),
    st.tuples(st.just("see"), st.just("1"), st.booleans(), st.booleans()),
    st.tuples(st.just("fail"), st.sampled_from(["find", "ensure", "offer", "probe"])),
    st.tuples(st.just("upgrade")),
    st.tuples(st.just("reboot")),
)
IN_THE_MESH: list[tuple[str, object]] = [("see", "1", True, True), ("turns", 20)]  # type: ignore[list-item]


@settings(deadline=None)
@given(st.lists(st.lists(st.tuples(ONE_PODS, st.integers(0, 20)), max_size=8), max_size=3))
def test_annotation_in_any_history(lives: list[list[tuple[Any, int]]]) -> None:
    """L41: every value that is ever written: while the pod is wanted, none takes `enabled` back."""
    steps = [[each for step, turns in life for each in (step, ("turns", turns))] for life in lives]
    run_virtually(play([IN_THE_MESH, *steps]))


async def play(lives: list[list[tuple[str, object]]]) -> None:
    node = Node()
    before: History | None = None
    for number, steps in enumerate(lives or [[]], 1):
        async with bench(node) as on:
            history = History(on)
            if before is not None:
                history.begin_after(before)
            await play_steps(history, steps)
            if number >= len(lives):
                await finish(history)
        node.cut_off()
        before = history


async def play_steps(history: History, steps: list[tuple[str, object]]) -> None:
    for kind, *arguments in steps:
        if kind == "turns":
            for _ in range(*arguments):  # type: ignore[call-overload]
                await asyncio.sleep(0)
        else:
            getattr(history, kind)(*arguments)
            history.note_who_left()


async def finish(history: History) -> None:
    on, node = history.on, history.on.node
    node.failures.clear()
    history.ztunnel("there")
    history.namespace("ambient" if history.ambient else "plain")
    history.heard |= {uid: len(node.written[uid]) for uid in history.pods}
    for uid, labeled in dict(history.pods).items():
        history.see(uid, labeled, addressed=True)
    for row in on.table:
        if row.sandbox_ended is not None:
            on.table.handed_over(row, replace(SANDBOX, netns=str(node.namespaces[row.uid])))
        on.table.wake(row.uid)
    await on.settled()
    inside = {uid for uid, labeled in history.pods.items() if labeled or history.ambient}
    assert {row.uid for row in on.table} == set(history.pods)
    assert {row.uid for row in on.table if row.state is State.ENROLLED} == inside
    assert {uid: n for uid, n in (node.ztunnel or {}).items() if uid in history.pods} == {
        uid: node.namespaces[uid] for uid in inside
    }
    assert sorted(held.id for held in node.open) == sorted(node.namespaces[uid] for uid in inside)
    assert len(node.watches) == len(inside)
    assert node.probed == inside
    for uid in history.pods:
        expected = Redirection.ENABLED if uid in inside else None
        assert node.annotations.get(uid) is expected
        assert (node.namespaces[uid] in node.rules) is (uid in inside)


def test_backoff() -> None:
    """Retries go from 5 ms to 5 s, never more, with jitter, and start over after a success."""
    backoff = Backoff()
    delays = [backoff.delay() for _ in range(20)]
    assert FIRST / 2 <= delays[0] <= FIRST
    assert all(LONGEST / 2 <= delay <= LONGEST for delay in delays[-5:])
    assert len(set(delays)) == len(delays)
    backoff.reset()
    assert backoff.delay() <= FIRST


SANDBOX = Sandbox(
    container_id="c1",
    netns="7",
    addresses=(IPv4Address("10.0.0.7"),),
    network="pods",
    interface="eth0",
)


async def test_pod_that_slipped_by_is_reported_once() -> None:
    """L19: a mesh pod that ran before it was redirected is enrolled, and that is said."""
    async with bench(Node(namespaces={U1: 1})) as on:
        on.table.namespace_seen(SHOP)
        on.table.pod_seen(a_pod(phase="Running"))
        await on.until_state("1", State.ENROLLED)
        assert on.node.did("1").count("unprotected") == 1
        on.node.rules.clear()
        on.table.wake(U1)
        await eventually(lambda: on.node.did("1").count("ensure") == 2)
        assert on.node.did("1").count("unprotected") == 1


async def test_pod_that_was_redirected_before_did_not_slip_by() -> None:
    """L19: after an upgrade of the agent, and for a label that came later, nothing is reported."""
    node = Node(namespaces={U1: 1, PodUID("2"): 2}, rules={1}, outdated={1})
    async with bench(node) as on:
        on.table.namespace_seen(SHOP)
        on.table.pod_seen(a_pod(phase="Running"))
        on.table.pod_seen(a_pod("2", phase="Running", labels={}))
        on.table.pod_seen(a_pod("2", phase="Running"))
        await on.until_state("1", State.ENROLLED)
        await on.until_state("2", State.ENROLLED)
        assert "unprotected" not in {name for name, _ in on.node.steps}


async def test_sandbox_that_is_handed_over_needs_no_address_from_the_cluster() -> None:
    """A pod is enrolled by what the CNI plugin tells, before the API server has an address."""
    async with bench(Node()) as on:
        on.table.namespace_seen(SHOP)
        on.table.pod_seen(a_pod(addresses=()))
        await on.until_state("1", State.WAITING)
        on.table.handed_over(on.row("1"), SANDBOX)
        await on.until_state("1", State.ENROLLED)
        assert on.node.ztunnel == {U1: 7}
        assert on.row("1").pod.addresses == SANDBOX.addresses


async def test_sandbox_that_is_handed_over_did_not_slip_by() -> None:
    """L19: a running pod's new sandbox waits for us: its containers are not there yet."""
    async with bench(Node()) as on:
        on.table.namespace_seen(SHOP)
        on.table.pod_seen(a_pod(addresses=(), phase="Running"))
        on.table.handed_over(on.row("1"), SANDBOX)
        await on.until_state("1", State.ENROLLED)
        assert "unprotected" not in on.node.did("1")


async def test_newest_sandbox_counts() -> None:
    """L14: a retried ADD brings another namespace under the same UID; the old one is let go."""
    async with bench(Node()) as on:
        on.table.namespace_seen(SHOP)
        on.table.pod_seen(a_pod(addresses=()))
        on.table.handed_over(on.row("1"), SANDBOX)
        await on.until_state("1", State.ENROLLED)
        on.table.handed_over(on.row("1"), replace(SANDBOX, container_id="c2", netns="8"))
        await eventually(lambda: on.node.ztunnel == {U1: 8})
        await on.settled()
        assert [held.id for held in on.node.open] == [8]


async def test_sandbox_that_ends_is_let_go_and_the_next_one_taken() -> None:
    """A descriptor would keep a dead sandbox's namespace and its rules alive."""
    async with bench(Node(namespaces={U1: 1})) as on:
        on.table.namespace_seen(SHOP)
        on.table.pod_seen(a_pod(addresses=()))
        on.table.handed_over(on.row("1"), SANDBOX)
        await on.until_state("1", State.ENROLLED)
        on.table.sandbox_ended(on.row("1"))
        await on.until_state("1", State.WAITING)
        assert (on.node.open, on.node.ztunnel, on.node.probed) == ([], {}, set())
        on.table.handed_over(on.row("1"), replace(SANDBOX, container_id="c2", netns="8"))
        await on.until_state("1", State.ENROLLED)
        assert on.node.written[U1] == [Redirection.ENABLED], "L41: not taken off in between"


async def test_next_sandbox_may_come_past_the_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    """L3: with the plugin dropped from the chain, nobody hands the next sandbox over."""
    for module in (enrollment, worker):
        monkeypatch.setattr(module, "SANDBOX_TEARDOWN", 0.05)
    async with bench(Node(namespaces={U1: 1})) as on:
        on.table.namespace_seen(SHOP)
        on.table.pod_seen(a_pod())
        await on.until_state("1", State.ENROLLED)
        on.table.sandbox_ended(on.row("1"))
        await on.until_state("1", State.WAITING)
        on.node.namespaces[U1] = 2
        on.table.wake(U1)  # an echo of our own patch, say
        await on.until_state("1", State.ENROLLED)
        assert on.node.did("1").count("find") == 2
        assert [held.id for held in on.node.open] == [2]


async def test_pod_that_is_gone_between_two_sandboxes_is_forgotten() -> None:
    """One that is deleted by force, which no watch has called deleting before, leaves no row."""
    async with bench(Node()) as on:
        await enrolled(on)
        on.table.sandbox_ended(on.row("1"))
        await on.until_state("1", State.WAITING)
        on.table.pod_gone(U1)
        await eventually(lambda: len(on.table) == 0)


async def test_sandbox_of_a_deleted_pod_ends_without_another_patch() -> None:
    """What is about to vanish is not annotated anew."""
    async with bench(Node()) as on:
        on.table.namespace_seen(SHOP)
        on.table.pod_seen(a_pod(addresses=()))
        on.table.handed_over(on.row("1"), SANDBOX)
        await on.until_state("1", State.ENROLLED)
        on.table.pod_seen(a_pod(addresses=(), deleting=True))
        on.table.sandbox_ended(on.row("1"))
        await on.until_state("1", State.WAITING)
        assert on.node.annotations[U1] is Redirection.ENABLED


async def test_name_leads_to_every_pod_that_has_it() -> None:
    """L38: two pods of one name are two UIDs, and both are told of, the newer one first."""
    async with bench(Node()) as on:
        on.table.pod_seen(a_pod("1"))
        on.table.pod_seen(a_pod("2"))
        assert list(on.table.named("shop", "web")) == [on.row("2"), on.row("1")]
        on.table.pod_gone(PodUID("2"))
        assert list(on.table.named("shop", "web")) == [on.row("1")]
        assert list(on.table.named("shop", "other")) == []


def warnings(logs: list[MutableMapping[str, Any]]) -> list[str]:
    return [line["event"] for line in logs if line["log_level"] not in {"debug", "info"}]


async def test_end_of_a_sandbox_is_no_warning() -> None:
    """`lo` goes down before the runtime's DEL comes; what the watch makes of it passes."""
    node = Node()
    async with bench(node) as on:
        await enrolled(on)
        node.failures["ensure"] = [TransientError("the loopback interface is down")] * 100
        with capture_logs() as logs:
            on.table.drifted(U1)
            await on.until_state("1", State.RETRYING)
            on.table.sandbox_ended(on.row("1"))
            await on.until_state("1", State.WAITING)
        assert warnings(logs) == []


async def test_faults_of_a_pod_that_is_being_deleted_are_no_warnings() -> None:
    """A pod whose containers have ended loses its namespace: nobody has to do anything."""
    async with bench(Node()) as on:
        await enrolled(on)
        with capture_logs() as logs:
            on.node.failures["find"] = [RetryError("not found")] * 5
            on.table.pod_seen(a_pod(deleting=True))
            await on.until_state("1", State.RETRYING)
            await eventually(lambda: not on.node.failures["find"])
            on.table.pod_gone(U1)
            await eventually(lambda: len(on.table) == 0)
        assert warnings(logs) == []


async def test_what_should_pass_and_does_not_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pod whose `lo` somebody has taken down for good is said, once."""
    loop, begun = asyncio.get_running_loop(), time.time()
    monkeypatch.setattr(time, "time", lambda: begun + loop.time())
    node = Node(namespaces={U1: 1})
    node.failures["ensure"] = [TransientError("the loopback interface is down")] * 15
    async with bench(node) as on:
        with capture_logs() as logs:
            await enrolled(on)
        assert warnings(logs) == ["will try again"]
