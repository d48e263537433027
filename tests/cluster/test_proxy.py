"""The control plane and the faults, before anything else relies on them."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator

import aiohttp
import pytest

from tests.cluster.client import AnswerError
from tests.cluster.control_plane import ControlPlane
from tests.cluster.proxy import FaultProxy
from tests.eventually import PATIENCE, eventually


class User:
    """An asynchronous client that keeps its connection."""

    def __init__(self, control_plane: ControlPlane, proxy: FaultProxy) -> None:
        tls = ssl.create_default_context(cafile=str(control_plane.ca))
        self.session = aiohttp.ClientSession(
            proxy.url,
            connector=aiohttp.TCPConnector(ssl=tls),
            headers={"Authorization": f"Bearer {control_plane.admin_token}"},
            timeout=aiohttp.ClientTimeout(total=PATIENCE),
        )

    async def get(self, path: str) -> tuple[int, str]:
        async with self.session.get(path) as response:
            return response.status, await response.text()


@pytest.fixture
async def user(control_plane: ControlPlane, proxy: FaultProxy) -> AsyncIterator[User]:
    user = User(control_plane, proxy)
    yield user
    await user.session.close()


def _watch(namespace: str) -> str:
    return f"/api/v1/namespaces/{namespace}/configmaps?watch=1&resourceVersion=0"


def _add(control_plane: ControlPlane, namespace: str, name: str) -> None:
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    control_plane.admin.post(path, {"metadata": {"name": name}})


async def test_account_has_its_token_and_nothing_more(
    control_plane: ControlPlane, namespace: str
) -> None:
    """A service account's token is taken, and gives what a role grants, not more."""
    admin = control_plane.admin
    admin.make_account(namespace, "agent")
    client = control_plane.client_for(namespace, "agent")
    with pytest.raises(AnswerError) as refused:
        client.get("/api/v1/nodes")
    admin.make_role(
        f"{namespace}-nodes", {"apiGroups": [""], "resources": ["nodes"], "verbs": ["list"]}
    )
    admin.bind(f"{namespace}-nodes", namespace=namespace, account="agent")

    def may() -> bool:
        try:
            return bool(client.get("/api/v1/nodes"))
        except AnswerError:
            return False

    await eventually(may)
    client.close()
    assert refused.value.status == 403


async def test_pod_has_status_and_waits_for_its_kubelet(
    control_plane: ControlPlane, namespace: str, node_name: str
) -> None:
    """A pod on a node has what a kubelet says of it, and its deletion waits for the kubelet."""
    pod = control_plane.admin.make_pod(namespace, "web", node=node_name, addresses=["10.9.0.1"])
    path = f"/api/v1/namespaces/{namespace}/pods/web"
    control_plane.admin.delete(path)
    leaving = control_plane.admin.get(path)
    control_plane.admin.delete(path, grace=0)
    with pytest.raises(AnswerError) as gone:
        control_plane.admin.get(path)
    assert pod["status"]["podIPs"] == [{"ip": "10.9.0.1"}]
    assert "deletionTimestamp" in leaving["metadata"]
    assert gone.value.status == 404


async def test_server_comes_back_with_what_it_knew(
    control_plane: ControlPlane, namespace: str
) -> None:
    """After a restart the server has the objects of before, at the same address."""
    await control_plane.restart(kill=True)
    control_plane.admin.get(f"/api/v1/namespaces/{namespace}")


async def test_answers_in_the_place_of_the_server(user: User, proxy: FaultProxy) -> None:
    """410, 429 and 500 are given as often as asked for, where asked for; all is counted."""
    proxy.answer_gone(match="GET /version")
    proxy.answer_busy(match="GET /version", retry_after=7)
    proxy.answer(500, "etcdserver: leader changed", match="GET /version")
    assert (await user.get("/api"))[0] == 200
    status, text = await user.get("/version")
    assert (status, json.loads(text)["reason"]) == (410, "Expired")
    async with user.session.get("/version") as busy:
        assert (busy.status, busy.headers["Retry-After"]) == (429, "7")
    assert await user.get("/version") == (500, "etcdserver: leader changed")
    assert (await user.get("/version"))[0] == 200
    assert (proxy.count("^GET /version$"), proxy.count()) == (4, 5)


async def test_watch_is_relayed_spoiled_and_added_to(
    control_plane: ControlPlane, user: User, proxy: FaultProxy, namespace: str
) -> None:
    """A watch has the server's lines, those put in between, and then half of one."""
    async with user.session.get(_watch(namespace)) as watch:
        _add(control_plane, namespace, "first")
        assert json.loads(await watch.content.readline())["object"]["metadata"]["name"] == "first"
        assert await proxy.inject(b'{"type": "ERROR"}\n', match=namespace) == 1
        assert await watch.content.readline() == b'{"type": "ERROR"}\n'
        proxy.truncate(match=namespace)
        _add(control_plane, namespace, "second")
        half = await watch.content.read()
    assert half.startswith(b'{"type":"ADDED"')
    assert not half.endswith(b"\n")


async def test_connections_are_cut_refused_and_taken_again(
    user: User, proxy: FaultProxy, namespace: str
) -> None:
    """A cut resets a watch; while the proxy is down nobody gets in; then all is as before."""
    async with user.session.get(_watch(namespace)) as watch:
        proxy.cut()
        with pytest.raises((aiohttp.ClientError, ConnectionError)):
            await watch.content.readline()
    assert (await user.get("/version"))[0] == 200
    await proxy.down()
    with pytest.raises(aiohttp.ClientConnectorError):
        await user.get("/version")
    await proxy.up()
    assert (await user.get("/version"))[0] == 200


async def test_stalled_watch_stays_open_and_silent(
    control_plane: ControlPlane, user: User, proxy: FaultProxy, namespace: str
) -> None:
    """A stalled connection brings nothing more and does not end; a new one works."""
    async with user.session.get(_watch(namespace)) as stalled:
        proxy.stall()
        _add(control_plane, namespace, "unheard")
        async with user.session.get(_watch(namespace)) as fresh:
            assert b"unheard" in await fresh.content.readline()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(stalled.content.readline(), 0.2)


async def test_held_answer_comes_after_the_release(user: User, proxy: FaultProxy) -> None:
    """What is held back waits, and is answered once it is let go."""
    proxy.hold()
    waiting = asyncio.create_task(user.get("/version"))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(waiting), 0.2)
    assert proxy.count("version") == 1
    proxy.release()
    assert (await waiting)[0] == 200
