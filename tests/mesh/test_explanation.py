"""The chain of one pod: which link does not hold, and what the conclusion is."""

from collections.abc import AsyncIterator

import pytest

from nodeagent.mesh.dependencies import Inspection
from nodeagent.mesh.errors import RetryError
from nodeagent.mesh.explanation import Explainer, Explanation, Link, Mark
from nodeagent.mesh.pod import REDIRECTION, SIDECAR_STATUS, Namespace, Pod, PodUID
from nodeagent.mesh.progress import State
from nodeagent.mesh.verification import Verifications
from tests.mesh.node import Bench, Held, Node, bench
from tests.mesh.pods import AMBIENT, ENABLED, SANDBOX, SHOP, U1, a_pod, enrolled

pytestmark = pytest.mark.virtual_time


class World:
    """What the kernel, ztunnel and the host say."""

    def __init__(self) -> None:
        self.found = Inspection()
        self.connected = True
        self.answer: str | None = ""
        self.probes: tuple[str, ...] | RetryError = ()

    async def look(self, netns: Held, pod: Pod) -> Inspection:
        assert netns in netns.node.open
        assert pod.addresses
        return self.found

    def answer_of(self, uid: PodUID) -> str | None:
        assert uid
        return self.answer

    async def inspect(self, pod: Pod) -> tuple[str, ...]:
        assert pod.addresses
        if isinstance(self.probes, RetryError):
            raise self.probes
        return self.probes


@pytest.fixture
async def on() -> AsyncIterator[Bench]:
    async with bench(Node()) as made:
        yield made


async def explained(on: Bench, world: World, uid: str = "1") -> Explanation:
    explainer = Explainer(
        on.table,
        Verifications(on.table, world),
        netns_finder=on.node,
        ztunnels=world,
        probes=world,
        reporter=on.node,
    )
    return await explainer.of(on.workload(uid))


def link(explanation: Explanation, topic: str) -> Link:
    (found,) = [each for each in explanation.links if each.topic == topic]
    return found


async def test_everything_holds(on: Bench) -> None:
    """Each link with its evidence; nothing to do."""
    await enrolled(on)
    on.node.netns_ids[U1] = 7
    on.table.handed_over(on.workload("1"), SANDBOX)
    await on.settled()
    found = await explained(on, World())
    assert (found.ok, found.next_step) == (True, "nothing")
    assert found.verdict == "in the mesh: its traffic is redirected, and ztunnel serves it"
    assert {each.mark for each in found.links} == {Mark.OK}
    assert link(found, "selected").says == "yes: pod matches istio.io/dataplane-mode=ambient"
    assert link(found, "sandbox").evidence == ("container c1", "addresses: 10.0.0.7")
    assert link(found, "netns") == Link("netns", Mark.OK, "7", ("/netns/7",))
    assert "enrolled" in [each.what for each in found.history]


async def test_rules_are_gone_and_the_annotation_says_enabled(on: Bench) -> None:
    """The fault for which this command is made: everything else looks right."""
    await enrolled(on)
    world = World()
    world.found = Inspection(differed=("rules are missing",))
    found = await explained(on, world)
    assert not found.ok
    assert link(found, "rules, routes") == Link(
        "rules, routes", Mark.WRONG, "differ", ("rules are missing",)
    )
    assert link(found, "annotation").says == f"{REDIRECTION}: enabled, but the pod is not in order"
    assert found.verdict == "should be in the mesh, and is not in order: rules are missing"
    assert "repairs this by itself" in found.next_step


async def test_ztunnel(on: Bench) -> None:
    """It refuses, it is away, it has not answered, it does not listen: each is told apart."""
    await enrolled(on)
    world = World()
    world.answer = "cannot bind"
    assert link(await explained(on, world), "ztunnel").says == "refuses the pod: cannot bind"
    world.answer = None
    assert "has not answered" in link(await explained(on, world), "ztunnel").says
    world.connected = False
    found = await explained(on, world)
    assert "no ztunnel is connected" in link(found, "ztunnel").says
    assert found.verdict == "in the mesh, but look at: ztunnel"
    assert "app=ztunnel" in found.next_step
    world = World()
    world.found = Inspection(silent=(15008,))
    found = await explained(on, world)
    assert link(found, "listeners").mark is Mark.WRONG
    assert found.verdict.startswith("redirected, but not served: ztunnel does not listen on 15008")
    assert "app=ztunnel" in found.next_step


@pytest.mark.parametrize(
    ("probes", "mark"), [(("10.0.0.1 is missing",), Mark.WRONG), (RetryError("x"), Mark.UNKNOWN)]
)
async def test_probe_set(on: Bench, probes: tuple[str, ...] | RetryError, mark: Mark) -> None:
    """An address that is not in the host's set, and a set that cannot be read."""
    await enrolled(on)
    world = World()
    world.probes = probes
    found = await explained(on, world)
    assert (found.ok, link(found, "probes").mark) == (False, mark)
    assert found.verdict == "in the mesh, but look at: probes"


async def test_not_selected(on: Bench) -> None:
    """Why not: which label of what, for every selector."""
    on.table.namespace_seen(SHOP)
    on.table.pod_seen(a_pod(labels={"istio.io/dataplane-mode": "none"}))
    await on.until_state("1", State.OUTSIDE)
    found = await explained(on, World())
    assert found.ok
    mode, none = "istio.io/dataplane-mode", "(istio.io/dataplane-mode=none)"
    second = f"namespace does not match {mode}=ambient (no {mode})"
    assert link(found, "selected").evidence == (
        f"selector 1: pod does not match {mode}=ambient {none}, in any namespace",
        f"selector 2: pod does not match {mode}!=none {none}, " + second,
    )
    assert [each.topic for each in found.links] == ["selected", "annotation"]
    assert found.verdict == "not in the mesh, and not meant to be: no enablement selector matches"
    assert "set the labels" in found.next_step
    on.table.namespace_seen(Namespace("shop", AMBIENT))
    found = await explained(on, World())
    assert "pod opted out" in link(found, "selected").says
    assert "set the labels" in found.next_step


async def test_selected_and_kept_out(on: Bench) -> None:
    """No label would help a pod with a sidecar, so none is recommended."""
    on.table.namespace_seen(SHOP)
    on.table.pod_seen(a_pod(annotations={SIDECAR_STATUS: "{}"}))
    await on.until_state("1", State.OUTSIDE)
    found = await explained(on, World())
    assert (found.ok, found.next_step) == (True, "nothing")
    assert "has a sidecar" in found.verdict


async def test_on_its_way(on: Bench) -> None:
    """What is missing is named, with what to do; nobody looks into the pod."""
    on.table.namespace_seen(SHOP)
    on.table.pod_seen(a_pod(annotations=ENABLED))
    await on.until_state("1", State.RETRYING)
    found = await explained(on, World())
    assert link(found, "netns") == Link("netns", Mark.WRONG, "not open: no such netns")
    assert link(found, "rules, routes").mark is Mark.UNKNOWN
    assert link(found, "annotation").mark is Mark.WRONG
    assert found.verdict.endswith("not in order: retrying: no such netns")
    assert found.next_step.startswith("remove the cause")


async def test_unknown_namespace(on: Bench) -> None:
    """Unknown is neither yes nor no (L16)."""
    on.table.pod_seen(a_pod(labels={}))
    await on.until_state("1", State.WAITING)
    found = await explained(on, World())
    assert (found.ok, link(found, "selected").mark) == (False, Mark.UNKNOWN)
    assert "namespace shop has not been seen yet" in link(found, "selected").evidence[1]


async def test_every_state_has_a_next_step(on: Bench) -> None:
    """Whatever state the pod is in, the last line says what to do."""
    await enrolled(on)
    world = World()
    world.found = Inspection(differed=("rules are missing",))
    for state in State:
        on.workload("1").progress.set_state(state, "a reason")
        found = await explained(on, world)
        assert found.next_step
        assert found.verdict
