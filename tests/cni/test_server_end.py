"""The plugin's other commands over the model of the heart, and Istio's own plugin."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import structlog

from nodeagent.cni import server
from nodeagent.mesh.pod import PodUID
from nodeagent.mesh.progress import State
from tests.cni.container_runtime import (
    DIFFERS,
    TRY_AGAIN,
    Reply,
    Runtime,
    body,
    connected,
    istio_request,
    known,
    serving,
    until_handed_over,
)
from tests.eventually import PATIENCE, eventually
from tests.mesh.node import Node
from tests.mesh.pods import SHOP, a_pod

pytestmark = pytest.mark.virtual_time


async def added(runtime: Runtime, uid: str = "1", **changes: Any) -> None:
    known(runtime, uid)
    assert (await runtime.add(uid=uid, **changes)).success


async def collect(runtime: Runtime, valid: object, network: str = "net") -> Reply:
    config = {"name": network, "cni.dev/valid-attachments": valid}
    return await runtime.call("GC", config=config)


async def test_deleted_sandbox_is_let_go_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DEL returns when ztunnel was told and the descriptor is closed; the kernel can free it."""
    async with serving(tmp_path) as runtime:
        await added(runtime)
        telling, told = asyncio.Event(), asyncio.Event()
        withdraw = runtime.on.node.withdraw

        async def slowly(uid: PodUID) -> None:
            telling.set()
            await told.wait()
            await withdraw(uid)

        monkeypatch.setattr(runtime.on.node, "withdraw", slowly)
        deleting = asyncio.create_task(runtime.delete())
        await telling.wait()
        assert not (await asyncio.wait([deleting], timeout=0.05))[0]
        told.set()
        reply = await deleting
        assert (reply.success, reply.text) == (True, "")
        assert (runtime.on.node.ztunnel, runtime.on.node.open) == ({}, [])
        assert "taken down" in runtime.on.workload("1").detail


async def test_delete_of_what_is_gone(tmp_path: Path) -> None:
    """L18: DEL succeeds for what is not known, twice, and without a namespace."""
    config = {"cniVersion": "0.3.0", "name": "net"}
    nameless = body("DEL", config, CNI_CONTAINERID="c9", CNI_IFNAME="eth0")
    with structlog.testing.capture_logs() as logged:
        async with serving(tmp_path, in_sync=False) as runtime:
            runtime.gone.add("/run/netns/1")
            assert (await runtime.delete()).success
            assert (await runtime.delete()).success
            assert (await runtime.post("/cni", nameless)).success
    assert logged == []


async def test_delete_by_an_agent_that_was_restarted(tmp_path: Path) -> None:
    """A sandbox whose namespace the agent has found by itself is known by that."""
    async with serving(tmp_path, Node(netns_ids={PodUID("1"): 1})) as runtime:
        runtime.on.table.namespace_seen(SHOP)
        runtime.on.table.pod_seen(a_pod())
        await runtime.on.until_state("1", State.ENROLLED)
        assert (await runtime.delete(netns=1)).success
        assert (runtime.on.node.ztunnel, runtime.on.node.open) == ({}, [])


async def test_delete_of_the_sandbox_before(tmp_path: Path) -> None:
    """L14: a late DEL does not hurt the sandbox that the pod has now."""
    async with serving(tmp_path) as runtime:
        await added(runtime, container="c1", netns=1)
        assert (await runtime.add(container="c2", netns=2)).success
        assert (await runtime.delete(container="c1", netns=1)).success
        await runtime.on.settled()
        assert runtime.on.node.ztunnel == {"1": 2}
        assert [held.id for held in runtime.on.node.open] == [2]


async def test_delete_does_not_wait_for_a_ztunnel_that_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """L12: a pod in Terminating does not wait until a ztunnel has answered."""
    monkeypatch.setattr("nodeagent.cni.release.RELEASE_DEADLINE", 0.05)
    async with serving(tmp_path) as runtime:
        await added(runtime)
        hung = asyncio.Event()

        async def withdraw(_: PodUID) -> None:
            await hung.wait()

        monkeypatch.setattr(runtime.on.node, "withdraw", withdraw)
        assert (await runtime.delete()).success
        assert len(runtime.on.node.open) == 1
        hung.set()
        await eventually(lambda: runtime.on.node.open == [])


async def test_delete_that_overtakes_its_add(tmp_path: Path) -> None:
    """L14: an ADD that comes after its DEL does not take over from the newer sandbox."""
    async with serving(tmp_path) as runtime:
        known(runtime)
        assert (await runtime.delete(container="c1", netns=1)).success
        assert (await runtime.add(container="c2", netns=2)).success
        reply = await runtime.add(container="c1", netns=1)
        assert reply.code == TRY_AGAIN
        assert "has deleted this sandbox" in reply.message
        assert runtime.on.node.ztunnel == {"1": 2}


async def test_delete_while_its_add_looks_for_the_pod(tmp_path: Path) -> None:
    """An ADD that is not done when its DEL comes ends with a failure, and takes nothing over."""
    async with serving(tmp_path) as runtime:
        adding = asyncio.create_task(runtime.add())
        await eventually(lambda: runtime.waiting > 0)
        assert (await runtime.delete()).success
        known(runtime)
        assert (await adding).code == TRY_AGAIN
        assert runtime.on.workload("1").sandbox is None


async def test_delete_while_its_add_waits_for_ztunnel(tmp_path: Path) -> None:
    """The same after the sandbox was handed over: it is let go of."""
    async with serving(tmp_path, Node(ztunnel=None)) as runtime:
        known(runtime)
        adding = asyncio.create_task(runtime.add())
        await until_handed_over(runtime)
        await runtime.on.until_state("1", State.PENDING)
        assert (await runtime.delete()).success
        assert (await adding).code == TRY_AGAIN
        assert runtime.on.node.open == []


async def test_id_that_is_used_again(tmp_path: Path) -> None:
    """ADD, DEL and ADD under one id, as some runtimes do, is three requests that succeed."""
    async with serving(tmp_path) as runtime:
        await added(runtime)
        assert (await runtime.delete()).success
        assert (await runtime.add()).success
        assert runtime.on.node.ztunnel == {"1": 1}


async def test_id_that_was_deleted_first_is_refused_once(tmp_path: Path) -> None:
    """A runtime that means it tries again: what is remembered of deletions locks nobody out."""
    async with serving(tmp_path) as runtime:
        known(runtime)
        assert (await runtime.delete()).success
        assert (await runtime.add()).code == TRY_AGAIN
        assert (await runtime.add()).success


async def test_deletions_are_not_remembered_without_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a year of pods leaves behind is bounded; the latest count."""
    monkeypatch.setattr("nodeagent.cni.attachments.REMEMBERED", 2)
    async with serving(tmp_path) as runtime:
        known(runtime)
        for container in ("c1", "c2", "c3"):
            assert (await runtime.delete(container=container)).success
        assert (await runtime.add(container="c2")).code == TRY_AGAIN
        assert (await runtime.add(container="c1")).success


async def test_check_compares_the_kernel_with_intent(tmp_path: Path) -> None:
    """CHECK says what differs, and touches nothing."""
    async with serving(tmp_path) as runtime:
        await added(runtime)
        assert (await runtime.call("CHECK")).success
        runtime.on.node.rules.clear()
        reply = await runtime.call("CHECK")
        assert reply.code == DIFFERS
        assert "rules are missing" in reply.message
        assert runtime.on.node.rules == set()


async def test_check_of_another_namespace(tmp_path: Path) -> None:
    """CHECK of a sandbox that is not the one in the mesh fails with the pod's state."""
    async with serving(tmp_path) as runtime:
        await added(runtime)
        reply = await runtime.call("CHECK", netns=2)
        assert reply.code == DIFFERS
        assert "enrolled" in reply.message


async def test_check_of_pods_that_are_not_in_the_mesh(tmp_path: Path) -> None:
    """CHECK has nothing to say of them; of a pod that is not known it says so (L16)."""
    async with serving(tmp_path) as runtime:
        assert (await runtime.call("CHECK", namespace="kube-system")).success
        assert (await runtime.call("CHECK", namespace="control")).success
        assert (await runtime.call("CHECK")).code == TRY_AGAIN
        known(runtime, labels={})
        assert (await runtime.call("CHECK")).success


async def test_collection_ends_what_is_not_valid(tmp_path: Path) -> None:
    """GC lets go of attachments of its network that the runtime does not have any more."""
    async with serving(tmp_path) as runtime:
        for uid in ("1", "2"):
            await added(runtime, uid, container=f"c{uid}", netns=int(uid))
        valid = [{"containerID": "c1", "ifname": "eth0"}]
        assert (await collect(runtime, valid)).success
        await eventually(lambda: runtime.on.node.ztunnel == {"1": 1})


@pytest.mark.parametrize("valid", [{}, "c1", 0, [{"containerID": 1, "ifname": "eth0"}], [[]]])
async def test_collection_with_a_list_that_is_none(tmp_path: Path, valid: object) -> None:
    """A list that is not understood is not an empty one: nothing ends."""
    async with serving(tmp_path) as runtime:
        await added(runtime)
        assert (await collect(runtime, valid)).code == 7
        assert runtime.on.workload("1").sandbox is not None


@pytest.mark.parametrize("config", [{}, {"cni.dev/valid-attachments": None}])
async def test_collection_without_a_list(tmp_path: Path, config: dict[str, object]) -> None:
    """L40: without a list, what lives stays, and what the kernel does not have any more ends."""
    async with serving(tmp_path) as runtime:
        for uid in ("1", "2", "3"):
            await added(runtime, uid, container=f"c{uid}", netns=int(uid))
        runtime.gone.add("/run/netns/2")
        runtime.hidden.add("/run/netns/3")
        assert (await runtime.call("GC", config=config)).success
        await eventually(lambda: runtime.on.node.ztunnel == {"1": 1, "3": 3})


async def test_collection_leaves_other_networks_alone(tmp_path: Path) -> None:
    """GC is about one network: others have lists of their own."""
    async with serving(tmp_path) as runtime:
        await added(runtime)
        assert (await collect(runtime, [], network="other")).success
        assert runtime.on.workload("1").sandbox is not None


async def test_collection_leaves_what_is_being_added(tmp_path: Path) -> None:
    """An attachment that is newer than the runtime's list is not ended by it."""
    async with serving(tmp_path, Node(ztunnel=None)) as runtime:
        known(runtime)
        adding = asyncio.create_task(runtime.add())
        await until_handed_over(runtime)
        assert (await collect(runtime, [])).success
        assert runtime.on.workload("1").sandbox is not None
        adding.cancel()


@pytest.mark.parametrize("in_sync", [True, False])
async def test_status(tmp_path: Path, in_sync: bool) -> None:
    """L40: whoever can answer is well: while it starts, without lists, without a ztunnel."""
    async with serving(tmp_path, Node(ztunnel=None), in_sync=in_sync) as runtime:
        runtime.missing = ["the first list of pods"]
        runtime.api.away = True
        reply = await runtime.call("STATUS")
        assert (reply.success, reply.text) == (True, "")


async def test_version(tmp_path: Path) -> None:
    """VERSION names every version, and needs no configuration."""
    async with serving(tmp_path) as runtime:
        reply = await runtime.post("/cni", body("VERSION", b""))
        assert json.loads(reply.text)["supportedVersions"] == [
            "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0",
        ]  # fmt: skip


async def test_fault_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """L18: a bug in the agent fails an ADD with a CNI error, and never a DEL."""
    async with serving(tmp_path) as runtime:
        known(runtime)

        def fault(*_: object) -> None:
            raise ZeroDivisionError

        with monkeypatch.context() as patch:
            patch.setattr(runtime.on.table, "handed_over", fault)
            assert (await runtime.add()).code == TRY_AGAIN
        assert (await runtime.add()).success
        monkeypatch.setattr(runtime.on.table, "sandbox_ended", fault)
        assert (await runtime.delete()).success


@pytest.mark.parametrize(
    "config", [{"cniVersion": "2.0.0"}, {"cniVersion": None}, {"name": "-"}, {"prevResult": 10**9}]
)
async def test_request_that_is_not_understood(tmp_path: Path, config: dict[str, object]) -> None:
    """L18, L40: it fails an ADD, and never keeps a pod in Terminating, or a node from ready."""
    async with serving(tmp_path) as runtime:
        known(runtime)
        assert not (await runtime.call("ADD", config=config)).success
        for command in ("DEL", "STATUS"):
            reply = await runtime.call(command, config=config)
            assert (reply.success, reply.text) == (True, "")


async def test_peer_that_is_not_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is not root is disconnected before a byte is read."""
    monkeypatch.setattr(server, "ROOT_UID", 4711)
    async with serving(tmp_path) as runtime:
        for name in ("pluginevent.sock", "log.sock"):
            with connected(str(tmp_path / name)) as peer:
                peer.setblocking(False)
                loop = asyncio.get_running_loop()
                async with asyncio.timeout(PATIENCE):
                    assert await loop.sock_recv(peer, 1) == b""
        assert runtime.on.node.steps == []


async def test_request_that_does_not_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that stalls is answered after a while, as CNI error JSON."""
    monkeypatch.setattr(server, "BODY_DEADLINE", 0.05)
    async with serving(tmp_path):
        with connected(str(tmp_path / "pluginevent.sock")) as peer:
            peer.sendall(b"POST /cni HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc")
            peer.setblocking(False)
            async with asyncio.timeout(PATIENCE):
                answer = await asyncio.get_running_loop().sock_recv(peer, 4096)
        assert b"was not complete" in answer


async def test_request_that_is_too_large(tmp_path: Path) -> None:
    """A body beyond every configuration is refused, not stored."""
    async with serving(tmp_path) as runtime:
        reply = await runtime.post("/cni", bytes(server.MAX_BODY + 1))
        assert reply.code == 6


async def test_stopping_does_not_wait_for_what_waits(tmp_path: Path) -> None:
    """An agent that stops drops the ADDs that wait; the binary tells the runtime to try again."""
    async with serving(tmp_path, Node(ztunnel=None)) as runtime:
        known(runtime)
        adding = asyncio.create_task(runtime.add())
        await until_handed_over(runtime)
        stopped_from = asyncio.get_running_loop().time()
    with pytest.raises(json.JSONDecodeError):
        _ = (await adding).code
    assert asyncio.get_running_loop().time() - stopped_from < 2


@pytest.mark.parametrize("address", ["10.0.0.1", "fd00::1"])
async def test_istios_plugin(tmp_path: Path, address: str) -> None:
    """A node that still has Istio's plugin is served: 200 when the pod is in the mesh."""
    async with serving(tmp_path) as runtime:
        known(runtime)
        runtime.api.pods.append(a_pod(addresses=()))
        assert (await runtime.post("/cmdadd", istio_request(address))).success
        assert runtime.on.node.ztunnel == {"1": 1}
        assert (await runtime.delete(container="c1", netns=1)).success
        assert runtime.on.node.ztunnel == {}


async def test_istios_plugin_gets_the_reason(tmp_path: Path) -> None:
    """Any other status fails the pod with the body as the message."""
    async with serving(tmp_path, Node(ztunnel=None), deadline=0.2) as runtime:
        known(runtime)
        runtime.api.pods.append(a_pod(addresses=()))
        reply = await runtime.post("/cmdadd", istio_request())
        assert not reply.success
        assert "no ztunnel is connected" in reply.text


@pytest.mark.parametrize(
    "request_body",
    [b"", b"[]", b"null", b"[" * 100_000, istio_request(Netns=None), istio_request(PodName=""),
     istio_request(PodName="a;K8S_POD_UID=1"), istio_request(Netns="relative"),
     istio_request(IPs=[{}]), istio_request(IPs=[1]), istio_request("10.0.0.0/8")],
)  # fmt: skip
async def test_what_istios_plugin_never_sends(tmp_path: Path, request_body: bytes) -> None:
    """It is refused with a text, and nothing is done."""
    async with serving(tmp_path) as runtime:
        known(runtime)
        assert not (await runtime.post("/cmdadd", request_body)).success
        assert runtime.on.workload("1").sandbox is None
        assert runtime.api.asked == []


async def test_lines_of_istios_plugin(tmp_path: Path) -> None:
    """They are logged as the plugin's, at their own level, and cannot pose as other lines."""
    lines = [
        json.dumps({"level": "warn", "time": "2026", "msg": "no\nluck", "pod": "a\x1b[31m"}),
        "not json",
        json.dumps({"level": "made up", "msg": ["x"]}),
    ]
    with structlog.testing.capture_logs() as logged:
        async with serving(tmp_path) as runtime:
            reply = await runtime.post("/log", json.dumps(lines).encode(), sock="log.sock")
            assert reply.success
    assert [(line["log_level"], line["event"]) for line in logged] == [
        ("warning", "no\\nluck"),
        ("info", "not json"),
        ("info", "['x']"),
    ]
    assert all(line["plugin"] == "istio-cni" for line in logged)
    assert logged[0]["fields"] == '{"time": "2026", "pod": "a\\u001b[31m"}'


@pytest.mark.parametrize("lines", [b"{}", b"[1]", b"", b"\xff", b"[" * 100_000])
async def test_what_is_no_log(tmp_path: Path, lines: bytes) -> None:
    """A body that is no array of strings is refused."""
    async with serving(tmp_path) as runtime:
        assert not (await runtime.post("/log", lines, sock="log.sock")).success
