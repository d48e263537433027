"""ADD over the model of the heart: what is let through, held, and handed over."""

import asyncio
import os
import stat
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from nodeagent.mesh.dependencies import Inspection
from nodeagent.mesh.pod import CONFIG_HASH, CONFIG_MIRROR, Namespace, Pod, PodUID
from nodeagent.mesh.progress import State
from nodeagent.observer import Observer
from tests.cni.container_runtime import (
    TRY_AGAIN,
    body,
    descriptors_are_given_back,
    known,
    serving,
    until_handed_over,
)
from tests.eventually import eventually
from tests.mesh.node import Held, Node
from tests.mesh.pods import AMBIENT, SHOP, a_pod

pytestmark = pytest.mark.virtual_time

STARTING = a_pod(addresses=())


async def test_mesh_pod_goes_on_when_it_is_accepted(tmp_path: Path) -> None:
    """ADD ends when rules are in and ztunnel has accepted, though no address was known."""
    async with serving(tmp_path) as runtime:
        known(runtime)
        reply = await runtime.add()
        assert reply.success
        assert '"address": "10.0.0.1/24"' in reply.text
        node = runtime.on.node
        assert (node.rules, node.ztunnel) == ({1}, {"1": 1})
        assert runtime.on.workload("1").pod.addresses == (IPv4Address("10.0.0.1"),)
        assert runtime.api.asked == [], "what the cache knows is not asked for"


async def test_calls_are_told(tmp_path: Path) -> None:
    """An observer hears of each call twice, and of the code where the answer hides it."""
    told: list[tuple[str, ...]] = []

    class Heard(Observer):
        def plugin_asked(self) -> None:
            told.append(("asked",))

        def plugin_answered(self, command: str, code: str, seconds: float) -> None:
            assert seconds >= 0
            told.append((command, code))

    node = Node(ztunnel=None)
    async with serving(tmp_path, node, deadline=0.2, observer=Heard()) as runtime:
        known(runtime)
        assert (await runtime.add()).code == TRY_AGAIN
        node.ztunnel = {}
        runtime.on.table.wake(PodUID("1"))
        assert (await runtime.add()).success
        assert (await runtime.post("/cni", body("DEL", "no JSON"))).success
        assert (await runtime.post("/cni", body("VERSION", ""))).success
        assert not (await runtime.post("/cni", b"no JSON")).success
    answered = [each for each in told if each != ("asked",)]
    assert answered == [
        *(("ADD", "11"), ("ADD", "0"), ("DEL", "6"), ("VERSION", "0"), ("unknown", "4"))
    ]
    assert len(told) == 2 * len(answered)


async def test_previous_result_is_passed_on_to_the_byte(tmp_path: Path) -> None:
    """A chained plugin that adds nothing changes nothing: numbers, order, spaces."""
    text = '{ "z":1.50, "cniVersion" : "1.0.0", "n":12345678901234567890123, "a":"\\u00e9" }'
    config = f'{{"name": "net", "prevResult": {text}, "cniVersion": "1.0.0"}}'
    variables = {"CNI_CONTAINERID": "c1", "CNI_NETNS": "/1", "CNI_IFNAME": "eth0"}
    pod = "K8S_POD_NAMESPACE=kube-system;K8S_POD_NAME=dns"
    async with serving(tmp_path) as runtime:
        reply = await runtime.post("/cni", body("ADD", config, **variables, CNI_ARGS=pod))
        assert (reply.success, reply.text) == (True, text)


async def test_pod_outside_the_mesh_goes_on_at_once(tmp_path: Path) -> None:
    """L26: the table's decision is the plugin's; such a pod is never touched."""
    async with serving(tmp_path) as runtime:
        known(runtime, labels={})
        assert (await runtime.add()).success
        assert runtime.on.workload("1").sandbox is None


@pytest.mark.parametrize(
    ("namespace", "name"), [("kube-system", "dns"), ("istio-system", "nodeagent-x2x4z")]
)
async def test_start_up_waits_for_nobody_who_is_needed_for_it(
    tmp_path: Path, namespace: str, name: str
) -> None:
    """L15: excluded namespaces and the agent's own pods go on before the agent is ready."""
    async with serving(tmp_path, in_sync=False) as runtime:
        runtime.api.away = True
        reply = await runtime.add(namespace=namespace, name=name)
        assert reply.success
        assert runtime.api.asked == []


@pytest.mark.parametrize(
    "name", ["nodeagent-x2x4z-0", "nodeagent-x2x4", "ztunnel-x2x4z-0", "ztunnel-x2x4", "web"]
)
async def test_names_like_the_agents_are_no_way_around(tmp_path: Path, name: str) -> None:
    """L15: only what a DaemonSet's controller makes is let through unasked."""
    async with serving(tmp_path, deadline=0.05, in_sync=False) as runtime:
        assert (await runtime.add(namespace="istio-system", name=name)).code == TRY_AGAIN


@pytest.mark.parametrize(
    ("namespace", "name"), [("istio-system", "ztunnel-x2x4z"), ("control", "plane-0")]
)
async def test_those_who_need_no_decision_wait_for_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, namespace: str, name: str
) -> None:
    """L15: ztunnel and the namespaces of the setting start while nobody can say what they are."""
    monkeypatch.setattr("nodeagent.cni.admission.EXCUSED_PATIENCE", 0.3)
    async with serving(tmp_path, in_sync=False) as runtime:
        runtime.api.away = True
        assert (await runtime.add(namespace=namespace, name=name)).success
        runtime.on.table.synced()
        assert (await runtime.add(namespace=namespace, name=name)).success
        assert runtime.api.asked != []
        known(runtime, "1", namespace=namespace, name=name, labels={})
        assert (await runtime.add(namespace=namespace, name=name)).success
        assert len(runtime.on.table) == 1
        assert runtime.on.workload("1").sandbox is None


async def test_those_who_need_no_decision_are_protected_by_one(tmp_path: Path) -> None:
    """L16: where the agent knows that such a pod is in the mesh, it is held like any other."""
    async with serving(tmp_path, Node(ztunnel=None), deadline=0.2) as runtime:
        known(runtime, namespace="control", name="plane-0")
        reply = await runtime.add(namespace="control", name="plane-0")
        assert reply.code == TRY_AGAIN
        assert "no ztunnel is connected" in reply.message


async def test_container_that_is_no_pod(tmp_path: Path) -> None:
    """A container without a pod's name cannot be in the mesh, and is let be."""
    variables = {"CNI_CONTAINERID": "c1", "CNI_NETNS": "/1", "CNI_IFNAME": "eth0"}
    config = {"cniVersion": "0.4.0", "name": "net"}
    async with serving(tmp_path, in_sync=False) as runtime:
        reply = await runtime.post("/cni", body("ADD", config, **variables))
        assert (reply.success, reply.text) == (True, '{"cniVersion": "0.4.0"}')


async def test_pod_that_the_watch_brings_late(tmp_path: Path) -> None:
    """A pod that the runtime starts before the watch has told of it waits, and is not asked for."""
    async with serving(tmp_path) as runtime:
        adding = asyncio.create_task(runtime.add())
        await eventually(lambda: runtime.waiting > 0)
        known(runtime)
        assert (await adding).success
        assert runtime.api.asked == []


async def test_watch_that_stands_still(tmp_path: Path) -> None:
    """A pod and a namespace that the watch does not bring are asked for."""
    async with serving(tmp_path) as runtime:
        runtime.api.pods.append(replace(STARTING, labels={}))
        runtime.api.namespaces["shop"] = Namespace("shop", AMBIENT)
        assert (await runtime.add()).success
        assert runtime.api.asked == ["shop/web", "shop"]
        assert runtime.on.node.rules == {1}


async def test_unknown_is_not_no(tmp_path: Path) -> None:
    """L16: with the API server away a pod that is not in the cache is held, and told why."""
    async with serving(tmp_path, deadline=0.4) as runtime:
        runtime.api.away = True
        reply = await runtime.add()
        assert reply.code == TRY_AGAIN
        assert "shop/web" in reply.message
        assert "the API server does not answer" in reply.message


async def test_unknown_namespace_is_not_no(tmp_path: Path) -> None:
    """L16: neither is a pod let through whose namespace nobody can tell of."""
    async with serving(tmp_path, deadline=0.4) as runtime:
        runtime.api.away = True
        runtime.on.table.pod_seen(replace(STARTING, labels={}))
        reply = await runtime.add()
        assert reply.code == TRY_AGAIN
        assert "the API server does not answer" in reply.message


async def test_api_server_that_comes_back(tmp_path: Path) -> None:
    """L16: a pod that was held goes on when the API server answers again, within one ADD."""
    async with serving(tmp_path) as runtime:
        runtime.api.away = True
        adding = asyncio.create_task(runtime.add())
        await eventually(lambda: len(runtime.api.asked) >= 2)
        runtime.api.pods.append(replace(STARTING, labels={}))
        runtime.api.namespaces["shop"] = SHOP
        runtime.api.away = False
        assert (await adding).success


async def test_answer_about_a_pod_that_is_older_than_the_news(tmp_path: Path) -> None:
    """What the watch tells while the API server is asked is newer than the answer."""
    async with serving(tmp_path) as runtime:
        runtime.api.may_answer.clear()
        runtime.api.pods.append(STARTING)
        adding = asyncio.create_task(runtime.add())
        await eventually(lambda: runtime.api.asked == ["shop/web"])
        known(runtime, labels={})
        runtime.api.may_answer.set()
        assert (await adding).success
        assert runtime.on.workload("1").sandbox is None


async def test_answer_about_a_namespace_that_is_older_than_the_news(tmp_path: Path) -> None:
    """The same for the labels of a namespace."""
    async with serving(tmp_path) as runtime:
        runtime.api.may_answer.clear()
        runtime.api.namespaces["shop"] = Namespace("shop", AMBIENT)
        runtime.on.table.pod_seen(replace(STARTING, labels={}))
        adding = asyncio.create_task(runtime.add())
        await eventually(lambda: runtime.api.asked == ["shop"])
        runtime.on.table.namespace_seen(SHOP)
        runtime.api.may_answer.set()
        assert (await adding).success
        assert runtime.on.workload("1").sandbox is None


async def test_pod_of_the_same_name_from_before(tmp_path: Path) -> None:
    """A row of another UID under the same name is not the pod that starts."""
    async with serving(tmp_path) as runtime:
        known(runtime, "1", labels={})
        adding = asyncio.create_task(runtime.add(uid="2", netns=2))
        await eventually(lambda: runtime.waiting > 0)
        known(runtime, "2")
        assert (await adding).success
        assert runtime.on.node.ztunnel == {"2": 2}


async def test_pod_that_was_replaced(tmp_path: Path) -> None:
    """A sandbox for a UID that the API server does not have any more does not go on."""
    async with serving(tmp_path) as runtime:
        runtime.api.pods.append(replace(STARTING, uid=PodUID("2")))
        reply = await runtime.add(uid="1")
        assert reply.code == TRY_AGAIN
        assert "was replaced" in reply.message
        assert len(runtime.on.table) == 0


async def test_pod_that_does_not_exist(tmp_path: Path) -> None:
    """A sandbox for a pod that was deleted meanwhile does not go on."""
    async with serving(tmp_path) as runtime:
        reply = await runtime.add()
        assert reply.code == TRY_AGAIN
        assert "knows of no pod shop/web" in reply.message


async def test_static_pod(tmp_path: Path) -> None:
    """The runtime knows a static pod by its manifest's hash; its mirror's UID is another."""
    async with serving(tmp_path) as runtime:
        known(runtime, "1", annotations={CONFIG_MIRROR: "h1", CONFIG_HASH: "h1"})
        assert (await runtime.add(uid="h1")).success
        assert runtime.on.node.ztunnel == {"1": 1}


async def test_no_ztunnel(tmp_path: Path) -> None:
    """Without a ztunnel a mesh pod is held, and its event says what to look at."""
    async with serving(tmp_path, Node(ztunnel=None), deadline=0.2) as runtime:
        known(runtime)
        reply = await runtime.add()
        assert reply.code == TRY_AGAIN
        assert "pending: no ztunnel is connected" in reply.message


async def test_ztunnel_that_comes_back_in_time(tmp_path: Path) -> None:
    """A pod that waits for ztunnel goes on when that is there."""
    async with serving(tmp_path, Node(ztunnel=None)) as runtime:
        known(runtime)
        adding = asyncio.create_task(runtime.add())
        await runtime.on.until_state("1", State.PENDING)
        runtime.on.node.ztunnel = {}
        runtime.on.table.wake(PodUID("1"))
        assert (await adding).success


async def test_refusal(tmp_path: Path) -> None:
    """What ztunnel says of a pod that it refuses reaches the pod's events."""
    async with serving(tmp_path, Node(refusing=True), deadline=0.2) as runtime:
        known(runtime)
        reply = await runtime.add()
        assert reply.code == TRY_AGAIN
        assert "retrying: cannot bind" in reply.message


async def test_acceptance_of_another_sandbox_is_not_enough(tmp_path: Path) -> None:
    """L14: a pod whose former sandbox is in the mesh waits until the new one is."""
    async with serving(tmp_path) as runtime:
        known(runtime)
        assert (await runtime.add()).success
        runtime.on.node.ztunnel = None
        adding = asyncio.create_task(runtime.add(container="c2", netns=2))
        await until_handed_over(runtime, "c2")
        await runtime.on.until_state("1", State.PENDING)
        assert not adding.done()
        runtime.on.node.ztunnel = {}
        runtime.on.table.wake(PodUID("1"))
        assert (await adding).success
        assert runtime.on.node.ztunnel == {"1": 2}


async def test_acceptance_from_before_the_rules_went_is_not_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pod that was leaving, and is to stay now, waits until its rules send to ztunnel again."""
    async with serving(tmp_path, Node(connections=2), removal_grace=60) as runtime:
        known(runtime)
        assert (await runtime.add()).success
        known(runtime, labels={})
        await runtime.on.until_state("1", State.LEAVING)
        writing, may_write = asyncio.Event(), asyncio.Event()
        ensure = runtime.on.node.ensure

        async def slowly(namespace: Held, pod: Pod) -> Inspection:
            writing.set()
            await may_write.wait()
            return await ensure(namespace, pod)

        monkeypatch.setattr(runtime.on.node, "ensure", slowly)
        known(runtime)
        await writing.wait()
        before = runtime.on.workload("1").sandbox
        adding = asyncio.create_task(runtime.add())
        await eventually(lambda: runtime.on.workload("1").sandbox is not before)  # once more
        assert not (await asyncio.wait([adding], timeout=0.05))[0]
        may_write.set()
        assert (await adding).success


async def test_agent_that_is_still_starting(tmp_path: Path) -> None:
    """A mesh pod waits for the first lists, and goes on with what they say."""
    async with serving(tmp_path, in_sync=False) as runtime:
        adding = asyncio.create_task(runtime.add())
        await eventually(lambda: runtime.waiting > 0)
        assert runtime.api.asked == [], "the lists are under way"
        known(runtime)
        runtime.on.table.synced()
        assert (await adding).success


async def test_agent_that_does_not_get_ready(tmp_path: Path) -> None:
    """Its pods' events say what the agent waits for."""
    async with serving(tmp_path, in_sync=False, deadline=0.05) as runtime:
        runtime.missing = ["the first list of pods"]
        reply = await runtime.add()
        assert reply.code == TRY_AGAIN
        assert "the first list of pods" in reply.message


async def test_label_that_goes_while_the_pod_waits(tmp_path: Path) -> None:
    """A pod that leaves the mesh during its ADD goes on, and nothing is left in it."""
    async with serving(tmp_path, Node(ztunnel=None)) as runtime:
        known(runtime)
        adding = asyncio.create_task(runtime.add())
        await runtime.on.until_state("1", State.PENDING)
        known(runtime, labels={})
        assert (await adding).success
        assert runtime.on.node.rules == set()


async def test_pod_that_goes_while_it_waits(tmp_path: Path) -> None:
    """A pod that is deleted during its ADD does not go on."""
    async with serving(tmp_path, Node(ztunnel=None)) as runtime:
        known(runtime)
        adding = asyncio.create_task(runtime.add())
        await runtime.on.until_state("1", State.PENDING)
        runtime.on.table.pod_gone(PodUID("1"))
        reply = await adding
        assert reply.code == TRY_AGAIN
        assert "does not exist any more" in reply.message


async def test_chain_that_gives_no_address(tmp_path: Path) -> None:
    """A mesh pod without an address could not be verified: the chain's order is at fault."""
    async with serving(tmp_path) as runtime:
        known(runtime)
        reply = await runtime.add(address="")
        assert reply.code == 7
        assert "behind the plugin" in reply.message


async def test_namespace_that_is_gone_already(tmp_path: Path) -> None:
    """A stale ADD, whose namespace was taken down, does not touch the pod's row."""
    async with serving(tmp_path) as runtime:
        known(runtime)
        assert (await runtime.add()).success
        runtime.gone.add("/run/netns/7")
        assert (await runtime.add(container="c0", netns=7)).code == TRY_AGAIN
        assert runtime.on.node.ztunnel == {"1": 1}


async def test_same_request_twice(tmp_path: Path) -> None:
    """Both succeed, one after the other and at the same time."""
    async with serving(tmp_path) as runtime:
        known(runtime)
        replies = await asyncio.gather(*(runtime.add() for _ in range(5)))
        assert all(reply.success for reply in [*replies, await runtime.add()])
        await runtime.on.settled()
        assert len(runtime.on.node.open) == 1


async def test_second_network_of_a_sandbox(tmp_path: Path) -> None:
    """A further interface in a sandbox that is in the mesh does not take its place."""
    async with serving(tmp_path) as runtime:
        known(runtime)
        assert (await runtime.add()).success
        assert (await runtime.add(ifname="net1", address="10.1.0.1")).success
        assert runtime.on.workload("1").pod.addresses == (IPv4Address("10.0.0.1"),)
        assert (await runtime.delete(ifname="net1")).success
        assert runtime.on.node.ztunnel == {"1": 1}


async def test_add_that_was_cancelled_and_came_again(tmp_path: Path) -> None:
    """L14: the runtime gave up on one sandbox and made another: only that one counts."""
    async with serving(tmp_path, Node(ztunnel=None)) as runtime:
        known(runtime)
        first = asyncio.create_task(runtime.add(container="c1", netns=1))
        await until_handed_over(runtime, "c1")
        first.cancel()
        second = asyncio.create_task(runtime.add(container="c2", netns=2))
        await until_handed_over(runtime, "c2")
        assert (await runtime.delete(container="c1", netns=1)).success
        runtime.on.node.ztunnel = {}
        runtime.on.table.wake(PodUID("1"))
        assert (await second).success
        assert runtime.on.node.ztunnel == {"1": 2}
        assert [held.id for held in runtime.on.node.open] == [2]


async def test_add_whose_pod_has_a_newer_sandbox(tmp_path: Path) -> None:
    """L14: an ADD that still runs when the next sandbox is made ends with a failure."""
    async with serving(tmp_path, Node(ztunnel=None)) as runtime:
        known(runtime)
        first = asyncio.create_task(runtime.add(container="c1", netns=1))
        await until_handed_over(runtime, "c1")
        second = asyncio.create_task(runtime.add(container="c2", netns=2))
        reply = await first
        assert reply.code == TRY_AGAIN
        assert "another sandbox" in reply.message
        second.cancel()


async def test_client_that_goes_away_is_not_worked_for(tmp_path: Path) -> None:
    """A request ends with its connection, and leaves nothing behind."""
    async with serving(tmp_path, folder=True) as runtime:
        with descriptors_are_given_back():
            adding = asyncio.create_task(runtime.add())
            await eventually(lambda: runtime.waiting > 0)
            adding.cancel()
            await eventually(lambda: runtime.waiting == 0)


async def test_thousands_at_once(tmp_path: Path) -> None:
    """L5: a thousand pods are added at the same moment, half of them before they are known.

    With more of them the server would run out of connections.
    """
    pods = [
        replace(STARTING, uid=PodUID(str(number)), name=f"web-{number}")
        for number in range(1, 1001)
    ]
    late = pods[1::2]
    async with serving(tmp_path, deadline=3600) as runtime:
        runtime.api.pods = late
        for pod in pods[::2]:
            runtime.on.table.pod_seen(pod)

        async def add(pod: Pod) -> bool:
            reply = await runtime.add(
                container=f"c{pod.uid}", netns=int(pod.uid), name=pod.name, uid=pod.uid
            )
            return reply.success

        adding = [asyncio.create_task(add(pod)) for pod in pods]
        await eventually(lambda: runtime.waiting > 0)
        for pod in late:
            runtime.on.table.pod_seen(pod)
        assert all(await asyncio.gather(*adding))
        assert runtime.on.node.ztunnel == {pod.uid: int(pod.uid) for pod in pods}
        assert len(runtime.on.node.open) == len(pods)


async def test_sockets_belong_to_root(tmp_path: Path) -> None:
    """Mode 0600 from the first moment, and a peer that is not root is not read from."""
    async with serving(tmp_path):
        for name in ("pluginevent.sock", "log.sock"):
            path = tmp_path / name
            assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("trouble", "look_at"),
    [
        ("starting", "kubectl get pods -o wide -n istio-system"),
        ("API away", "whether this node reaches the API server"),
        ("no ztunnel", "ztunnel's pod on this node"),
        ("no such pod", "kubectl get pod -o wide -n shop web"),
        ("no namespace", "kubectl get namespace shop"),
        ("netns gone", "HOST_PREFIX"),
        ("no address", "CNI_NET_DIR"),
        ("fault", "look at its log"),
    ],
)
async def test_each_failure_says_what_to_look_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: str, look_at: str
) -> None:
    """The pod's event is what its owner has: the message names the next thing to do."""
    node = Node(ztunnel=None)
    async with serving(tmp_path, node, in_sync=trouble != "starting", deadline=0.4) as runtime:
        runtime.missing = ["the first list of pods"]
        runtime.api.away = trouble == "API away"
        if trouble == "no namespace":
            runtime.on.table.pod_seen(replace(STARTING, labels={}))
        elif trouble not in {"API away", "no such pod"}:
            known(runtime)
        if trouble == "netns gone":
            runtime.gone.add("/run/netns/1")
        if trouble == "fault":
            monkeypatch.setattr(runtime.on.table, "handed_over", None)
        reply = await runtime.add(address="" if trouble == "no address" else "10.0.0.1")
        assert look_at in reply.message
