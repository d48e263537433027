"""The agent's process in the place of istio-cni: with what Istio's chart gives it, and no more."""

import asyncio
import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest

from nodeagent.mesh.pod import REDIRECTION
from tests.agent.processes import AMBIENT, Stub
from tests.cluster.control_plane import ControlPlane
from tests.deploy import chart_pod, istio_chart
from tests.deploy.istio_chart import NAMESPACE, PROFILES, Profile
from tests.eventually import PATIENCE, eventually
from tests.lab.lab import Lab
from tests.lab.pod import Pod

PRIMARY: dict[str, Any] = {
    "cniVersion": "1.0.0",
    "name": "pods",
    "plugins": [{"type": "bridge"}, {"type": "istio-cni", "ambient_enabled": True}],
}


class Place:
    """A node with Istio's chart installed, with this agent's image in its DaemonSet."""

    def __init__(
        self, directory: Path, plane: ControlPlane, lab: Lab, *, profile: Profile, node: str
    ) -> None:
        self.plane, self.lab, self.profile, self.node = plane, lab, profile, node
        self.log = directory / "agent.log"
        self.directory = directory
        self.zds = str(directory / "ztunnel/ztunnel.sock")
        names = ("bin", "net.d", "netns", "istio-cni", "ztunnel", "secrets")
        for name in names:
            (directory / name).mkdir()
        self.primary = directory / "net.d/10-pods.conflist"
        self.primary.write_text(json.dumps(PRIMARY))
        # The runtime mounts namespaces there while the agent runs.
        _run("mount", "--bind", str(directory / "netns"), str(directory / "netns"))
        _run("mount", "--make-shared", str(directory / "netns"))
        self.own = lab.add_pod("agent")
        self.process: subprocess.Popen[bytes] | None = None
        self.name = f"{profile.daemonset}-abcde"
        self._install()

    def _install(self) -> None:
        admin = self.plane.admin
        admin.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
        for document in self.profile.objects():
            admin.apply(document)
        self.path = f"/apis/apps/v1/namespaces/{NAMESPACE}/daemonsets/{self.profile.daemonset}"
        daemonset = admin.get(self.path)
        admin.make_node(self.node, labels={"kubernetes.io/os": "linux"})
        spec = {"serviceAccountName": self.profile.account}
        admin.make_pod(NAMESPACE, self.name, node=self.node, spec=spec)
        owner = {
            "apiVersion": "apps/v1",
            "kind": "DaemonSet",
            "name": self.profile.daemonset,
            "uid": daemonset["metadata"]["uid"],
            "controller": True,
        }
        pods = f"/api/v1/namespaces/{NAMESPACE}/pods"
        admin.patch(f"{pods}/{self.name}", {"metadata": {"ownerReferences": [owner]}})
        token = self.plane.token_for(NAMESPACE, self.profile.account, pod=self.name)
        secrets = self.directory / "secrets"
        (secrets / "token").write_text(token)
        (secrets / "ca.crt").write_bytes(self.plane.ca.read_bytes())

    def start(self, port: int, **environ: str) -> None:
        """Start the agent; `port` leads to the API server in its netns."""
        on_node = {
            "/opt/cni/bin": str(self.directory / "bin"),
            "/etc/cni/net.d": str(self.directory / "net.d"),
            "/proc": "/proc",
            "/var/run/netns": str(self.directory / "netns"),
            "/var/run/istio-cni": str(self.directory / "istio-cni"),
            "/var/run/ztunnel": str(self.directory / "ztunnel"),
        }
        mounts = {inside: on_node[outside] for inside, outside in istio_chart.MOUNTS.items()}
        kubelets = {
            "KUBERNETES_SERVICE_HOST": "127.0.0.1",
            "KUBERNETES_SERVICE_PORT": str(port),
            "PATH": os.environ["PATH"],
        }
        command = chart_pod.command(
            netns="" if self.profile.host_network else self.own.path,
            mounts=mounts | {chart_pod.SECRETS: str(self.directory / "secrets")},
            environ=self.profile.environ(node=self.node, pod=self.name) | kubelets | environ,
            arguments=self.profile.arguments(),
            capabilities=istio_chart.CAPABILITIES,
        )
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)

    def answer(self, port: int, path: str) -> tuple[int, str]:
        """What its container answers at `port`; status 0: nothing."""
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        asking = socket.socket() if self.profile.host_network else self.own.run(socket.socket)
        try:
            asking.settimeout(PATIENCE)
            asking.connect(("127.0.0.1", port))
            connection.sock = asking
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        except OSError:
            return 0, ""
        finally:
            asking.close()

    async def until_ready(self) -> None:
        assert self.process is not None
        process = self.process
        with contextlib.suppress(TimeoutError):
            await eventually(
                lambda: process.poll() is not None or self.answer(8000, "/readyz")[0] == 200
            )
        assert self.answer(8000, "/readyz") == (200, "ready\n"), self.log.read_text()

    async def stop(self) -> int:
        assert self.process is not None
        process = self.process
        # Of its three processes the last is the container's.
        for pid in _descendants(process.pid)[-1:]:
            os.kill(pid, signal.SIGTERM)
        await eventually(lambda: process.poll() is not None)
        return process.returncode

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        _run("umount", "--lazy", str(self.directory / "netns"))

    def run_pod(self, name: str, namespace: str, uid: str, *, below: str) -> tuple[Pod, str]:
        """Call the chain for a new pod, as a runtime does that has its netns in `below`."""
        pod = self.lab.add_pod(name)
        mounted = self.directory / "netns" / name
        mounted.touch()
        _run("mount", "--bind", pod.path, str(mounted))
        conf = min((self.directory / "net.d").glob("*.conflist"))
        entries = json.loads(conf.read_text())["plugins"]
        [entry] = [each for each in entries if each["type"] == "nodeagent"]
        ips = [{"address": f"{address}/{address.max_prefixlen}"} for address in pod.addresses]
        socket_path = str(self.directory / "istio-cni/pluginevent.sock")
        assert entry["socket"] == "/var/run/istio-cni/pluginevent.sock"
        previous = {"cniVersion": "1.0.0", "ips": ips}
        head = {"cniVersion": "1.0.0", "name": "pods", "prevResult": previous}
        arguments = f"K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name};K8S_POD_UID={uid}"
        done = subprocess.run(
            [self.directory / "bin/nodeagent"],
            input=json.dumps(entry | head | {"socket": socket_path}),
            capture_output=True,
            text=True,
            check=False,
            env={
                "CNI_COMMAND": "ADD",
                "CNI_CONTAINERID": "a" * 64,
                "CNI_NETNS": f"{below}/{name}",
                "CNI_IFNAME": "eth0",
                "CNI_PATH": "/opt/cni/bin",
                "CNI_ARGS": f"IgnoreUnknown=1;{arguments};K8S_POD_INFRA_CONTAINER_ID={'a' * 64}",
            },
        )
        return pod, "" if done.returncode == 0 else done.stdout


def _run(*command: str) -> None:
    subprocess.run(command, check=True)


def _descendants(pid: int) -> list[int]:
    found: list[int] = []
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    for child in map(int, children):
        found += [child, *_descendants(child)]
    return found


@contextlib.asynccontextmanager
async def reachable(place: Place) -> AsyncIterator[int]:
    """The port of the agent's netns that leads to the API server."""
    port = place.plane.port
    if place.profile.host_network:
        yield port
        return
    place.own.shell("ip link set lo up")
    listener = place.own.socket()
    listener.bind(("127.0.0.1", port))
    listener.listen()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, to = await asyncio.open_connection("127.0.0.1", port)
        with contextlib.suppress(OSError):
            await asyncio.gather(_copy(reader, to), _copy(there, writer))

    server = await asyncio.start_server(relay, sock=listener)
    try:
        yield port
    finally:
        server.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    finally:
        writer.close()


@contextlib.asynccontextmanager
async def installed(
    directory: Path, plane: ControlPlane, *, profile: Profile, node: str
) -> AsyncIterator[tuple[Place, int]]:
    with Lab() as lab:
        place = Place(directory, plane, lab, profile=profile, node=node)
        try:
            async with reachable(place) as port:
                yield place, port
        finally:
            place.close()
            plane.admin.delete(f"/api/v1/namespaces/{NAMESPACE}/pods/{place.name}", grace=0)
            with contextlib.suppress(Exception):
                plane.admin.delete(place.path)


@pytest.mark.parametrize("profile", PROFILES, ids=str)
async def test_the_image_alone_is_changed(
    control_plane: ControlPlane, tmp_path: Path, namespace: str, node_name: str, profile: Profile
) -> None:
    """A pod comes into the mesh by what the chart gives the agent; its end is an uninstall."""
    async with installed(tmp_path, control_plane, profile=profile, node=node_name) as (place, port):
        place.start(port)
        await place.until_ready()
        admin = control_plane.admin
        stub = Stub(cast("Any", place))  # of a node it takes `zds` and `log`
        try:
            for number, below in enumerate(("/var/run/netns", "/run/netns")):
                name = f"web-{number}"
                made = admin.make_pod(
                    namespace, name, node=node_name, labels=AMBIENT, phase="Pending"
                )
                pod, refusal = await asyncio.to_thread(
                    place.run_pod, name, namespace, made["metadata"]["uid"], below=below
                )
                assert refusal == "", place.log.read_text()
                listing = "nft list ruleset" if profile.nftables else "iptables-save"
                assert "15001" in pod.shell(listing)
                admin.set_pod_status(namespace, name, addresses=list(map(str, pod.addresses)))
                path = f"/api/v1/namespaces/{namespace}/pods/{name}"

                def annotated(path: str = path) -> bool:
                    annotations = admin.get(path)["metadata"].get("annotations", {})
                    return bool(annotations.get(REDIRECTION) == "enabled")

                await eventually(annotated)
            status, figures = place.answer(15014, "/metrics")
            assert status == 200
            assert 'istio_cni_plugin_requests_total{response_code="200"} 2.0' in figures
            assert "istio_cni_install_ready 1.0" in figures
            assert "ztunnel_connected 1.0" in figures
            said = place.log.read_text()
            assert said.count("have no effect here") == 1
            warned = [line for line in said.splitlines() if "[warning" in line or "[error" in line]
            assert [line for line in warned if "istio-cni's entry" not in line] == []
            own = (tmp_path / "net.d/02-istio-cni.conflist").exists()
            assert own is profile.own_configuration
            control_plane.admin.delete(place.path)
            assert await place.stop() == 0
            assert "an uninstall" in place.log.read_text(), place.log.read_text()
            types = [each["type"] for each in json.loads(place.primary.read_text())["plugins"]]
            assert "nodeagent" not in types
        finally:
            await stub.stop()


@pytest.mark.parametrize("profile", [Profile(name="iptables")], ids=str)
async def test_ambient_mode_off(
    control_plane: ControlPlane, tmp_path: Path, node_name: str, profile: Profile
) -> None:
    """No ztunnel is served, an entry of ours leaves the chain, and Istio's own stays there."""
    async with installed(tmp_path, control_plane, profile=profile, node=node_name) as (place, port):
        ours = {"type": "nodeagent", "socket": "/var/run/istio-cni/pluginevent.sock"}
        chain = {**PRIMARY, "plugins": [*PRIMARY["plugins"], ours]}
        place.primary.write_text(json.dumps(chain))
        place.start(port, AMBIENT_ENABLED="false")
        await place.until_ready()
        assert json.loads(place.primary.read_text()) == PRIMARY
        assert os.listdir(tmp_path / "ztunnel") == []
        assert "istio_cni_install_ready 0.0" in place.answer(15014, "/metrics")[1]
        assert await place.stop() == 0
