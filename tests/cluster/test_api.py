"""Requests to a real API server, and what becomes of each failure."""

import base64
import json
import os
import tempfile
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nodeagent.cluster import access
from nodeagent.cluster.api import ApiError, ApiServer, NoClusterError
from nodeagent.observer import Observer
from tests.cluster.control_plane import ControlPlane
from tests.cluster.following import connected
from tests.cluster.proxy import FaultProxy

PODS = "/api/v1/pods"


@pytest.fixture
def config(control_plane: ControlPlane, proxy: FaultProxy, tmp_path: Path) -> str:
    """Leads to the proxy."""
    return control_plane.kubeconfig(tmp_path / "config", server=proxy.url)


async def test_objects(config: str, namespace: str) -> None:
    """Objects are made, asked for and patched; what is missing or there already says so."""
    maps = f"/api/v1/namespaces/{namespace}/configmaps"
    async with connected(config) as api:
        body = {"metadata": {"name": "a"}, "data": {"b": "c"}}
        assert (await api.post(maps, body))["data"] == {"b": "c"}
        patched = await api.patch(f"{maps}/a", {"data": {"b": None, "d": "e"}})
        assert patched["data"] == {"d": "e"}
        assert (await api.get(maps, params={"limit": "1"}))["items"][0]["metadata"]["name"] == "a"
        with pytest.raises(ApiError) as missing:
            await api.get(f"{maps}/nothing")
        assert missing.value.missing
        with pytest.raises(ApiError) as conflict:
            await api.post(maps, body)
        assert conflict.value.conflict


async def test_refusals(config: str, proxy: FaultProxy) -> None:
    """Whatever the server answers, the error is one short line, with status and patience."""
    async with connected(config) as api:
        proxy.answer(500, "etcd\n  is unwell\n" + "x" * 1000)
        with pytest.raises(ApiError, match=r"^etcd is unwell x+…$") as failed:
            await api.get(PODS)
        assert failed.value.status == 500
        assert len(str(failed.value)) < 310
        proxy.answer_busy(retry_after=7)
        with pytest.raises(ApiError) as busy:
            await api.get(PODS)
        assert (busy.value.status, busy.value.retry_after) == (429, 7)
        proxy.answer_busy(retry_after="Wed, 21 Oct 2026 07:28:00 GMT")
        with pytest.raises(ApiError) as dated:
            await api.get(PODS)
        assert dated.value.retry_after is None
        proxy.answer(502)
        with pytest.raises(ApiError, match="Bad Gateway"):
            await api.get(PODS)
        proxy.answer(200, "<html>")
        with pytest.raises(ApiError, match="not JSON"):
            await api.get(PODS)
        proxy.answer(200, "[]")
        with pytest.raises(ApiError, match="not an object"):
            await api.get(PODS)
        assert await api.get(PODS)


async def test_no_answer(config: str, proxy: FaultProxy) -> None:
    """Silence, a reset and a closed door are errors without a status, and leave nothing behind."""
    async with connected(config) as api:
        proxy.hold()
        began = time.monotonic()
        with pytest.raises(ApiError, match="no answer in time") as silent:
            await api.get(PODS, timeout=0.2)
        assert time.monotonic() - began < 10, "nobody asked for so long"
        assert silent.value.status is None
        proxy.release()
        await proxy.down()
        with pytest.raises(ApiError) as closed:
            await api.get(PODS)
        assert closed.value.status is None
        await proxy.up()
        assert await api.get(PODS)


async def test_answers_are_told(config: str, proxy: FaultProxy) -> None:
    """An observer hears of each request once: its status, or that there was no answer."""
    told: list[tuple[str, str]] = []

    class Heard(Observer):
        def api_answered(self, verb: str, code: str) -> None:
            told.append((verb, code))

    async with ApiServer.connect(config, Heard()) as api:
        await api.get(PODS)
        proxy.answer(500, "unwell")
        with pytest.raises(ApiError):
            await api.patch(PODS, {})
        proxy.answer(200, "<html>")
        with pytest.raises(ApiError):
            await api.post(PODS, {})
        await proxy.down()
        with pytest.raises(ApiError):
            await api.get(PODS)
        await proxy.up()
    assert told == [("get", "200"), ("patch", "500"), ("create", "200"), ("get", "none")]


async def test_stream(control_plane: ControlPlane, config: str, namespace: str) -> None:
    """A watch comes by the line, and a silent one ends with an error."""
    params = {"watch": "1"}
    path = f"/api/v1/namespaces/{namespace}/pods"
    async with connected(config) as api:
        control_plane.admin.make_pod(namespace, "a", node="")
        names = []
        with pytest.raises(ApiError, match="no answer in time"):  # noqa: PT012 - one block
            async with api.stream(
                path, params=params, accept="application/json", silence=0.5
            ) as lines:
                async for line in lines:
                    event = json.loads(line)
                    names.append(event["object"]["metadata"]["name"])
        assert names
        assert set(names) == {"a"}


async def test_untrusted_server(control_plane: ControlPlane, tmp_path: Path) -> None:
    """A server with a certificate of another CA is shown nothing."""
    path = tmp_path / "config"
    edit(control_plane, path, cluster={"certificate-authority": None})
    async with connected(str(path)) as api:
        with pytest.raises(ApiError, match="not one that the agent trusts"):
            await api.get(PODS)


async def test_proxy_of_the_environment(
    control_plane: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy that the environment names, on the node for images say, is not used."""
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    async with connected(control_plane.kubeconfig(tmp_path / "config")) as api:
        assert await api.get(PODS)


async def test_in_cluster(
    control_plane: ControlPlane, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a pod, what kubelet mounted there is enough; the token is read for each request."""
    control_plane.admin.make_account(namespace, "agent")
    (tmp_path / "token").write_text(control_plane.admin_token)
    (tmp_path / "ca.crt").write_bytes(control_plane.ca.read_bytes())
    monkeypatch.setattr(access, "SERVICE_ACCOUNT", str(tmp_path))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(control_plane.port))
    async with ApiServer.connect(None) as api:
        assert await api.get(PODS)
        (tmp_path / "token").write_text(control_plane.token_for(namespace, "agent"))
        with pytest.raises(ApiError) as denied:
            await api.get(PODS)
        assert denied.value.denied
        assert api.account == f"ServiceAccount {namespace}/agent"


async def test_not_in_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside of a pod, the missing kubeconfig is what is said."""
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(NoClusterError, match="KUBECONFIG"):
        async with ApiServer.connect(None):
            pass


async def test_embedded_credentials(
    control_plane: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Certificates and keys that a kubeconfig embeds are used and written to no disk."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "empty"))
    (tmp_path / "empty").mkdir()
    pem, key = encoded(control_plane.ca), encoded(control_plane.key)
    ca = {"certificate-authority": None, "certificate-authority-data": pem}
    pair = {"client-certificate-data": pem, "client-key-data": key}
    path = edit(control_plane, tmp_path / "config", cluster=ca, user=pair)
    descriptors = len(os.listdir("/proc/self/fd"))
    async with connected(path) as api:
        assert len(os.listdir("/proc/self/fd")) <= descriptors
        assert await api.get(PODS)
    assert os.listdir(tmp_path / "empty") == []


PLUGIN = """#!/bin/sh
echo run >> {folder}/runs
cat {folder}/credential
"""


async def test_exec_plugin(control_plane: ControlPlane, tmp_path: Path) -> None:
    """An exec plugin is run once, and again when its token is refused or about to expire."""
    plugin = tmp_path / "plugin"
    plugin.write_text(PLUGIN.format(folder=tmp_path))
    plugin.chmod(0o700)
    spec = {"command": str(plugin), "apiVersion": "client.authentication.k8s.io/v1"}
    path = edit(control_plane, tmp_path / "config", user={"token": None, "exec": spec})
    give(tmp_path, token="wrong")
    async with connected(path) as api:
        with pytest.raises(ApiError) as refused:
            await api.get(PODS)
        assert refused.value.status == 401
        give(tmp_path, token=control_plane.admin_token)
        for _ in range(3):
            assert await api.get(PODS)
        assert runs(tmp_path) == 2
        soon = (datetime.now(UTC) + timedelta(seconds=10)).isoformat()
        give(tmp_path, token=control_plane.admin_token, expirationTimestamp=soon)
    async with connected(path) as api:
        for _ in range(3):
            assert await api.get(PODS)
        assert runs(tmp_path) == 6, "once at the start, then for each request"
        (tmp_path / "credential").write_text("none")
        with pytest.raises(ApiError, match=r"no credential: exec: .*plugin gave no credential"):
            await api.get(PODS)


MISTAKES: dict[str, tuple[Mapping[str, Any], str]] = {
    "no context": ({"current-context": ""}, "no current-context"),
    "unknown context": ({"current-context": "x"}, "no context 'x'"),
    "no users": ({"users": None}, "no user 'tests'"),
    "no clusters": ({"clusters": []}, "no cluster 'tests'"),
    "odd clusters": ({"clusters": 7}, "shape of a kubeconfig"),
    "odd entry": ({"users": ["tests"]}, "shape of a kubeconfig"),
    "plain http": ({"cluster": {"server": "http://127.0.0.1"}}, "https://"),
    "no TLS": ({"cluster": {"insecure-skip-tls-verify": True}}, "give certificate-authority"),
    "no CA": ({"cluster": {"certificate-authority": "/none/ca"}}, "/none/ca"),
    "odd CA": ({"cluster": {"certificate-authority-data": "%"}}, "is not base64"),
    "empty CA": ({"cluster": {"certificate-authority-data": "eA=="}}, "cannot be used"),
    "provider": ({"user": {"auth-provider": {"name": "gcp"}}}, "use exec"),
    "no token": ({"user": {"token": None, "tokenFile": "none"}}, "none"),
    "no plugin": (
        {"user": {"exec": {"command": "/none/plugin", "apiVersion": "v1"}}},
        "/none/plugin gave no credential",
    ),
    "odd plugin": ({"user": {"exec": {}}}, "command"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
async def test_mistakes_in_a_kubeconfig(
    control_plane: ControlPlane, tmp_path: Path, mistake: str
) -> None:
    """A mistake in a kubeconfig is told in one line, with the file and what is wrong in it."""
    changes, words = MISTAKES[mistake]
    path = edit(control_plane, tmp_path / "config", **changes)
    with pytest.raises(NoClusterError) as error:
        async with ApiServer.connect(path):
            pass
    assert str(error.value).startswith(f"kubeconfig {path}: ")
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [None, b"", b"[]", b"{", b"\xff", b"a: *b", b"x" * 2**21])
async def test_file_that_is_no_kubeconfig(tmp_path: Path, content: bytes | None) -> None:
    """A file that is missing, empty, broken or huge is named in one line."""
    path = tmp_path / "config"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(NoClusterError, match=f"^kubeconfig {path}: [^\n]+$"):
        async with ApiServer.connect(str(path)):
            pass


def edit(control_plane: ControlPlane, path: Path, **changes: Any) -> str:
    """A kubeconfig with some keys of its cluster, its user or itself changed, or left out."""
    config = json.loads(Path(control_plane.kubeconfig(path)).read_text())
    for kind in ("cluster", "user"):
        if wanted := changes.pop(kind, None):
            part = config[f"{kind}s"][0][kind] | wanted
            config[f"{kind}s"][0][kind] = {k: v for k, v in part.items() if v is not None}
    path.write_text(json.dumps(config | changes))
    return str(path)


def encoded(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def give(folder: Path, **status: str) -> None:
    """What the plugin answers from now on."""
    version = "client.authentication.k8s.io/v1"
    answer = {"apiVersion": version, "kind": "ExecCredential", "status": status}
    (folder / "credential").write_text(json.dumps(answer))


def runs(folder: Path) -> int:
    return len((folder / "runs").read_text().splitlines())


class _EndedConnection:
    """An answer over TLS whose connection has ended before its body was asked for.

    Then asyncio's transport names no socket, for one turn of the event loop.
    """

    status = 200

    def __init__(self) -> None:
        self.response = self.connection = self.transport = self.content = self
        self.configuration = SimpleNamespace(host="https://server")

    async def request(self, *_: object, **__: object) -> Any:
        return self

    def get_extra_info(self, _: str) -> None:
        """There is no socket any more."""

    async def authorization(self) -> None:
        """No credential."""

    def refused(self) -> None:
        """Nobody is refused."""

    def abort(self) -> None:
        """It has ended."""

    def close(self) -> None:
        """It has ended."""

    async def readany(self) -> bytes:
        return b""


async def test_a_stream_that_ends_at_once() -> None:
    """It is a stream without a line, and no fault that would end the watch, and the agent."""
    ended = _EndedConnection()
    api = ApiServer(access.Access(ended, ended))
    async with api.stream(PODS, params={}, accept="application/json", silence=1) as lines:
        assert [line async for line in lines] == []
