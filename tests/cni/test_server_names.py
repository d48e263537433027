"""L38: calls that name a pod and do not tell its UID, while the name passes to another pod.

The shim, the plugin server and its socket are real; the API server is a model.
"""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nodeagent.mesh.pod import CONFIG_HASH, CONFIG_MIRROR, Pod, PodUID
from nodeagent.mesh.progress import State
from tests.cni.container_runtime import DIFFERS, Runtime, istio_request, known, serving
from tests.cni.shim_process import configuration, run
from tests.eventually import eventually
from tests.mesh.pods import a_pod

DB = "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web"
OLD, NEW = a_pod("1", addresses=()), a_pod("2", addresses=())

Start = Callable[[Runtime, int], Coroutine[Any, Any, str]]
"""Starts a sandbox in a network namespace without its pod's UID; what it fails with, or ""."""


async def _by_shim(shim: Path, runtime: Runtime, netns: int) -> str:
    done = await run(
        shim,
        "ADD",
        configuration(runtime.directory / "pluginevent.sock"),
        arguments=DB,
        CNI_CONTAINERID=f"c{netns}",
        CNI_NETNS=f"/run/netns/{netns}",
        CNI_IFNAME="eth0",
    )
    return "" if done.status == 0 else f"{done.error['msg']}: {done.error.get('details')}"


async def _by_istio(runtime: Runtime, netns: int) -> str:
    reply = await runtime.post("/cmdadd", istio_request(Netns=f"/run/netns/{netns}"))
    return "" if reply.success else reply.text


@pytest.fixture(params=["our plugin", "Istio's plugin"])
def start(request: pytest.FixtureRequest, shim: Path) -> Start:
    if request.param == "Istio's plugin":
        return _by_istio
    return lambda runtime, netns: _by_shim(shim, runtime, netns)


def api_has(runtime: Runtime, *pods: Pod) -> None:
    runtime.api.pods[:] = pods


async def until_asked(runtime: Runtime, times: int = 1) -> None:
    await eventually(lambda: len(runtime.api.asked) >= times)


async def test_name_of_one_pod(tmp_path: Path, start: Start) -> None:
    """The pod that has the name in the API is meant, and its row is the watch's."""
    async with serving(tmp_path) as runtime:
        known(runtime)
        api_has(runtime, OLD)
        assert await start(runtime, 1) == ""
        assert runtime.on.node.ztunnel == {"1": 1}
        assert len(runtime.on.table) == 1


OLD_ROWS: dict[str, dict[str, object]] = {
    "starts": {},
    "is not in the mesh": {"labels": {}},
    "is being deleted": {"deleting": True},
    "is being deleted, and not in the mesh": {"deleting": True, "labels": {}},
    "has ended": {"phase": "Succeeded"},
}
"""What the watch has told of the name's last owner when its successor starts."""


@pytest.mark.parametrize("old", OLD_ROWS.values(), ids=OLD_ROWS)
async def test_row_of_the_predecessor_is_no_answer(
    tmp_path: Path, start: Start, old: dict[str, object]
) -> None:
    """A re-created ``db-0`` is enrolled for itself while the watch lags, whatever it last told."""
    async with serving(tmp_path) as runtime:
        known(runtime, "1", **old)
        api_has(runtime, NEW)
        assert await start(runtime, 2) == ""
        assert runtime.on.node.ztunnel == {"2": 2}
        assert runtime.on.workload("1").sandbox is None


async def test_row_that_has_a_sandbox_is_no_answer(tmp_path: Path, start: Start) -> None:
    """The predecessor still runs as far as the watch knows: its sandbox stays its own."""
    async with serving(tmp_path) as runtime:
        known(runtime)
        assert (await runtime.add(uid="1", container="c1", netns=1)).success
        api_has(runtime, NEW)
        assert await start(runtime, 2) == ""
        assert runtime.on.node.ztunnel == {"1": 1, "2": 2}


async def test_watch_tells_of_the_successor_before_the_api_answers(
    tmp_path: Path, start: Start
) -> None:
    """The race in one order: what the watch has told meanwhile is one row, not two."""
    async with serving(tmp_path) as runtime:
        known(runtime, "1", deleting=True, labels={})
        api_has(runtime, NEW)
        runtime.api.may_answer.clear()
        starting = asyncio.create_task(start(runtime, 2))
        await until_asked(runtime)
        known(runtime, "2")
        runtime.on.table.pod_gone(PodUID("1"))
        runtime.api.may_answer.set()
        assert await starting == ""
        assert runtime.on.node.ztunnel == {"2": 2}


async def test_api_answers_before_the_watch_tells_of_the_successor(
    tmp_path: Path, start: Start
) -> None:
    """The race in the other order: late news of both pods changes nothing for the new one."""
    async with serving(tmp_path) as runtime:
        known(runtime, "1", labels={})
        api_has(runtime, NEW)
        assert await start(runtime, 2) == ""
        known(runtime, "1", labels={}, deleting=True)
        runtime.on.table.pod_gone(PodUID("1"))
        known(runtime, "2")
        await runtime.on.settled()
        assert runtime.on.node.ztunnel == {"2": 2}
        assert runtime.on.workload("2").state is State.ENROLLED


async def test_answer_that_is_older_than_the_predecessors_end(
    tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pod whose end the watch has told of does not come back with a late answer."""
    async with serving(tmp_path) as runtime:
        known(runtime)
        assert (await runtime.add(uid="1", container="c1", netns=1)).success
        api_has(runtime, OLD)
        runtime.api.may_answer.clear()
        starting = asyncio.create_task(start(runtime, 2))
        await until_asked(runtime)
        withdrawing, withdrawn = asyncio.Event(), asyncio.Event()

        async def withdraw(_: PodUID) -> None:
            withdrawing.set()
            await withdrawn.wait()

        monkeypatch.setattr(runtime.on.node, "withdraw", withdraw)
        runtime.on.table.pod_gone(PodUID("1"))
        await withdrawing.wait()
        runtime.api.may_answer.set()
        assert "does not exist any more" in await starting
        assert runtime.on.workload("1").gone
        withdrawn.set()


async def test_successor_that_the_api_does_not_have_yet(tmp_path: Path, start: Start) -> None:
    """While the API tells of a pod that is ending, its successor is waited for."""
    async with serving(tmp_path) as runtime:
        known(runtime, "1", deleting=True)
        api_has(runtime, replace(OLD, deleting=True))
        starting = asyncio.create_task(start(runtime, 2))
        await until_asked(runtime, 2)
        api_has(runtime, NEW)
        assert await starting == ""
        assert runtime.on.node.ztunnel == {"2": 2}


async def test_successor_that_never_comes(tmp_path: Path, start: Start) -> None:
    """L16: a pod that nobody knows is held, and the message says whose name it is."""
    async with serving(tmp_path, deadline=2) as runtime:
        known(runtime, "1", labels={}, deleting=True)
        api_has(runtime, replace(OLD, deleting=True))
        assert "is ending (UID 1)" in await start(runtime, 2)
        api_has(runtime)
        assert "knows of no pod shop/web" in await start(runtime, 3)
        runtime.api.away = True
        assert "the API server does not answer" in await start(runtime, 4)


async def test_sandbox_made_again(tmp_path: Path, start: Start) -> None:
    """L14: the pod that has a sandbox still has the name: this is its next sandbox."""
    async with serving(tmp_path) as runtime:
        known(runtime)
        api_has(runtime, OLD)
        assert await start(runtime, 1) == ""
        assert await start(runtime, 2) == ""
        assert runtime.on.node.ztunnel == {"1": 2}
        assert [held.id for held in runtime.on.node.open] == [2]


async def test_static_pod(tmp_path: Path, start: Start) -> None:
    """A static pod's mirror is made anew under the same name: the new mirror's row is meant."""
    mirror = {CONFIG_MIRROR: "h", CONFIG_HASH: "h"}
    async with serving(tmp_path) as runtime:
        known(runtime, "1", annotations=mirror, labels={})
        api_has(runtime, replace(NEW, annotations={CONFIG_MIRROR: "h2", CONFIG_HASH: "h2"}))
        assert await start(runtime, 2) == ""
        assert runtime.on.node.ztunnel == {"2": 2}


async def test_mirror_that_kubelet_makes_anew(tmp_path: Path) -> None:
    """With a static pod's hash as UID, too: the mirror that has it is meant, or waited for."""
    old, new = ({CONFIG_MIRROR: hash_, CONFIG_HASH: hash_} for hash_ in ("h1", "h2"))
    async with serving(tmp_path) as runtime:
        known(runtime, "1", annotations=old, labels={})
        api_has(runtime, replace(OLD, annotations=old))
        starting = asyncio.create_task(runtime.add(uid="h2", netns=2))
        await until_asked(runtime)
        known(runtime, "1", annotations=old, labels={}, deleting=True)
        known(runtime, "2", annotations=new)
        assert (await starting).success
        known(runtime, "3", annotations=new)
        runtime.on.table.pod_gone(PodUID("2"))
        assert (await runtime.add(uid="h2", container="c3", netns=3)).success
        await eventually(lambda: runtime.on.node.ztunnel == {"3": 3})


async def test_check_is_about_the_pod_that_has_the_namespace(tmp_path: Path) -> None:
    """CHECK without a UID: the sandbox's namespace tells two pods of one name apart."""
    async with serving(tmp_path) as runtime:
        for uid in ("1", "2"):
            known(runtime, uid)
            assert (await runtime.add(uid=uid, container=f"c{uid}", netns=int(uid))).success
        known(runtime, "1", deleting=True)
        runtime.on.node.rules.discard(2)
        assert (await runtime.call("CHECK", uid=None, container="c1", netns=1)).success
        reply = await runtime.call("CHECK", uid=None, container="c2", netns=2)
        assert (reply.code, "rules are missing" in reply.message) == (DIFFERS, True)


async def test_delete_is_about_the_sandbox(tmp_path: Path, start: Start) -> None:
    """DEL of the predecessor's sandbox leaves the successor's alone, in whatever order."""
    async with serving(tmp_path) as runtime:
        known(runtime)
        api_has(runtime, OLD)
        assert await start(runtime, 1) == ""
        api_has(runtime, NEW)
        assert await start(runtime, 2) == ""
        assert (await runtime.delete(uid=None, container="c1", netns=1)).success
        await eventually(lambda: runtime.on.node.ztunnel == {"2": 2})


@pytest.mark.parametrize(
    "old", [{"deleting": True}, {"phase": "Failed"}, {}], ids=["deleted", "ended", "has a sandbox"]
)
async def test_folder_of_manifests(tmp_path: Path, start: Start, old: dict[str, object]) -> None:
    """Without an API to ask, a row that ends or has a sandbox that lives is no answer."""
    async with serving(tmp_path, folder=True, deadline=5) as runtime:
        known(runtime)
        if not old:
            assert await start(runtime, 1) == ""
        known(runtime, "1", **old)
        assert "has not heard of the pod" in await start(runtime, 2)
        known(runtime, "2")
        assert await start(runtime, 3) == ""
        assert runtime.on.node.ztunnel is not None
        assert runtime.on.node.ztunnel[PodUID("2")] == 3


async def test_folder_of_manifests_whose_sandbox_has_gone(tmp_path: Path, start: Start) -> None:
    """A sandbox whose namespace is gone is over: the next one is the same pod's."""
    async with serving(tmp_path, folder=True) as runtime:
        known(runtime)
        assert await start(runtime, 1) == ""
        runtime.gone.add("/run/netns/1")
        assert await start(runtime, 2) == ""
        assert runtime.on.node.ztunnel == {"1": 2}


async def test_held_pod_is_not_asked_for_without_pause(tmp_path: Path, start: Start) -> None:
    """A name that nobody can explain costs the API server a few requests, not hundreds."""
    async with serving(tmp_path, deadline=1) as runtime:
        api_has(runtime, replace(OLD, deleting=True))
        assert await start(runtime, 2) != ""
        assert len(runtime.api.asked) <= 5
