"""The steps that bring a pod into the mesh and keep it there; what is in the way of them."""

import pytest

from nodeagent.mesh.annotation import Redirection
from nodeagent.mesh.pod import REDIRECTION, Namespace, PodUID
from nodeagent.mesh.progress import State
from tests.eventually import eventually
from tests.mesh.node import Node, bench
from tests.mesh.pods import AMBIENT, ENABLED, SHOP, U1, a_pod, enrolled

pytestmark = pytest.mark.virtual_time


async def test_order_of_an_enrollment() -> None:
    """L2: namespace, rules, ztunnel, probes, and the annotation last."""
    async with bench(Node()) as on:
        await enrolled(on)
        assert on.node.did("1") == ["find", "ensure", "offer", "probe", "report enabled"]


async def test_netns_that_is_not_known_yet() -> None:
    """L4: it is a visible state with its reason, and tried until it is found."""
    node = Node()
    async with bench(node) as on:
        on.table.namespace_seen(SHOP)
        on.table.pod_seen(a_pod())
        await on.until_state("1", State.RETRYING)
        assert on.workload("1").detail == "no such netns"
        assert on.table.kept() == [U1], "ztunnel keeps what it may have from before"
        node.netns_ids[U1] = 1
        await on.until_state("1", State.ENROLLED)


async def test_netns_that_cannot_be_watched() -> None:
    """L35: the pod is redirected and handed over all the same; the watch is tried again."""
    node = Node(netns_ids={U1: 1})
    node.unwatchable = True
    async with bench(node) as on:
        on.table.namespace_seen(SHOP)
        on.table.pod_seen(a_pod())
        await on.until_state("1", State.RETRYING)
        assert on.workload("1").detail == "no memory for a watch"
        assert (node.rules, node.annotations) == ({1}, {U1: Redirection.ENABLED})
        node.unwatchable = False
        await on.until_state("1", State.ENROLLED)
        assert len(node.watches) == 1


async def test_refusal_is_pending_until_accepted() -> None:
    """An Ack with an error leaves the pod redirected and pending; it is offered again."""
    node = Node(netns_ids={U1: 1}, refusing=True)
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
    node = Node(netns_ids={U1: 1}, ztunnel=None)
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


async def test_without_ztunnel() -> None:
    """No ztunnel: redirected and pending, not retried in vain; woken, it is handed over."""
    node = Node(netns_ids={U1: 1}, ztunnel=None)
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
        assert on.workload("1").state is State.ENROLLED


async def test_ztunnel_that_does_not_listen() -> None:
    """L1: an accepted pod on whose ports nobody listens is not called enrolled."""
    async with bench(Node(silent=(15001, 15006))) as on:
        await enrolled(on)
        on.table.wake(U1)
        await on.until_state("1", State.UNSERVED)
        assert "15001, 15006" in on.workload("1").detail
        on.node.silent = ()
        on.table.wake(U1)
        await on.until_state("1", State.ENROLLED)


async def test_agent_restart_reports_nothing_anew() -> None:
    """L24: rules that are right and an annotation that says so need neither write nor patch."""
    node = Node(netns_ids={U1: 1}, rules={1}, ztunnel=None)
    async with bench(node) as on:
        on.table.namespace_seen(SHOP)
        on.table.pod_seen(a_pod(annotations=ENABLED))
        await on.until_state("1", State.ENROLLED)
        assert node.annotations == {}


async def test_reboot_does_not_believe_the_annotation() -> None:
    """L41: after a reboot it says enabled and no rule is there: pending, but only as a state."""
    node = Node(netns_ids={U1: 1}, ztunnel=None)
    async with bench(node) as on:
        on.table.namespace_seen(SHOP)
        on.table.pod_seen(a_pod(annotations=ENABLED))
        await on.until_state("1", State.PENDING)
        assert (node.written, node.rules) == ({}, {1})


async def test_rules_of_another_layout_at_the_start() -> None:
    """L41: an upgrade that changes the rules takes no working pod back to pending."""
    node = Node(netns_ids={U1: 1}, rules={1}, outdated={1}, ztunnel=None)
    async with bench(node) as on:
        on.table.namespace_seen(SHOP)
        on.table.pod_seen(a_pod(annotations=ENABLED))
        await on.until_state("1", State.PENDING)
        node.ztunnel = {}
        on.table.wake(U1)
        await on.until_state("1", State.ENROLLED)
        assert node.written == {}


async def test_contested_pod_is_reported_now_and_then() -> None:
    """Rules that somebody takes out again and again are reported, less and less often."""
    async with bench(Node()) as on:
        await enrolled(on)
        for count in range(1, 22):
            on.node.rules.clear()
            on.table.wake(U1)
            await eventually(lambda count=count: on.repairs("1") == count)  # type: ignore[misc]
        reports = [step for step in on.node.did("1") if step.startswith("contested")]
        assert reports == ["contested 5", "contested 10", "contested 20"]


async def test_changed_annotation_is_not_drift() -> None:
    """Rules that change because the pod asks for it are not counted as repairs."""
    async with bench(Node()) as on:
        await enrolled(on)
        on.node.rules.clear()
        on.table.pod_seen(a_pod(annotations={"ambient.istio.io/dns-capture": "false"}))
        await on.settled()
        assert (on.node.rules, on.repairs("1")) == ({1}, 0)


async def test_address_that_is_missing_for_a_moment() -> None:
    """L9: an enrolled pod that has no address for a moment stays enrolled; a new one waits."""
    async with bench(Node(netns_ids={PodUID("2"): 2})) as on:
        await enrolled(on)
        on.table.pod_seen(a_pod(addresses=()))
        on.table.pod_seen(a_pod("2", addresses=()))
        await on.until_state("2", State.WAITING)
        await on.settled()
        assert on.workload("1").state is State.ENROLLED
        assert on.node.did("2") == []


async def test_namespace_that_is_unknown_for_a_moment() -> None:
    """L16: not knowing a pod's Kubernetes namespace does not take it out of the mesh."""
    async with bench(Node(netns_ids={U1: 1})) as on:
        on.table.namespace_seen(Namespace("shop", AMBIENT))
        on.table.pod_seen(a_pod(labels={}))
        await on.until_state("1", State.ENROLLED)
        on.table.namespace_gone("shop")
        await on.settled()
        assert on.workload("1").state is State.ENROLLED
        on.table.namespace_seen(SHOP)
        await on.until_state("1", State.OUTSIDE)


async def test_netns_belongs_to_one_pod() -> None:
    """L39: a netns that is held for another pod is refused, reported once, and left alone."""
    async with bench(Node(netns_ids={PodUID("2"): 1})) as on:
        await enrolled(on)
        on.table.pod_seen(a_pod("2", name="other"))
        await on.until_state("2", State.RETRYING)
        await eventually(lambda: on.node.did("2").count("find") > 2)
        assert set(on.node.did("2")) == {"find", "conflict over 1 with 1"}
        assert on.node.did("2").count("conflict over 1 with 1") == 1
        assert (on.node.ztunnel, [held.id for held in on.node.open]) == ({U1: 1}, [1])
        on.node.netns_ids[PodUID("2")] = 2
        await on.until_state("2", State.ENROLLED)


async def test_pod_that_leaves_does_not_take_anothers_rules_with_it() -> None:
    """L39: a pod outside of the mesh whose look leads to a mesh pod's namespace frees nobody."""
    node = Node(netns_ids={PodUID("2"): 1})
    async with bench(node) as on:
        await enrolled(on)
        on.table.pod_seen(a_pod("2", name="other", labels={}, annotations=ENABLED))
        await on.until_state("2", State.OUTSIDE)
        assert "conflict over 1 with 1" in node.did("2")
        assert (node.rules, [held.id for held in node.open]) == ({1}, [1])


async def test_static_pods_mirror_is_made_anew() -> None:
    """L39: the same sandbox under the next UID is no conflict: the old workload lets go first."""
    async with bench(Node(netns_ids={PodUID("2"): 1})) as on:
        await enrolled(on)
        on.table.pod_seen(a_pod("2"))
        await on.until_state("2", State.RETRYING)
        on.table.pod_gone(U1)
        await on.until_state("2", State.ENROLLED)
        assert not [step for step in on.node.did("2") if step.startswith("conflict")]
        assert on.node.ztunnel == {"2": 1}


async def test_pod_that_ran_unprotected_is_reported_once() -> None:
    """L19: a mesh pod that ran before it was redirected is enrolled, and that is said."""
    async with bench(Node(netns_ids={U1: 1})) as on:
        on.table.namespace_seen(SHOP)
        on.table.pod_seen(a_pod(phase="Running"))
        await on.until_state("1", State.ENROLLED)
        assert on.node.did("1").count("unprotected") == 1
        on.node.rules.clear()
        on.table.wake(U1)
        await eventually(lambda: on.node.did("1").count("ensure") == 2)
        assert on.node.did("1").count("unprotected") == 1


async def test_pod_that_was_redirected_before_is_not_reported() -> None:
    """L19: after an upgrade of the agent, and for a label that came later, nothing is reported."""
    node = Node(netns_ids={U1: 1, PodUID("2"): 2}, rules={1}, outdated={1})
    async with bench(node) as on:
        on.table.namespace_seen(SHOP)
        on.table.pod_seen(a_pod(phase="Running"))
        on.table.pod_seen(a_pod("2", phase="Running", labels={}))
        on.table.pod_seen(a_pod("2", phase="Running"))
        await on.until_state("1", State.ENROLLED)
        await on.until_state("2", State.ENROLLED)
        assert "unprotected" not in {name for name, _ in on.node.steps}
