"""A real etcd and kube-apiserver, as processes of the test's own, on loopback.

There is no controller, scheduler or kubelet: a namespace that is deleted stays
terminating, and nobody makes service accounts. The tests play those parts.
"""

import asyncio
import http.client
import json
import secrets
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

from tests.cluster.binaries import Binaries
from tests.cluster.client import AnswerError, Client, Object
from tests.eventually import PATIENCE, eventually

_LOOPBACK = "127.0.0.1"
_ISSUER = "https://kubernetes.default.svc"
_SUBJECT_NAMES = f"subjectAltName=IP:{_LOOPBACK},DNS:localhost,DNS:kubernetes.default.svc"


class ControlPlane:
    """Runs from its start to the end of its ``with`` block, and no longer than this process."""

    def __init__(self, binaries: Binaries, *arguments: str) -> None:
        """`arguments`: more of the API server's, than those that all tests need."""
        self._binaries = binaries
        self._arguments = arguments
        self._directory = tempfile.TemporaryDirectory(prefix="control-plane-")
        self.path = Path(self._directory.name)
        self.ca = self.path / "serving.crt"
        self.key = self.path / "serving.key"
        """Both for a proxy that is to pass for the server."""
        self.admin_token = secrets.token_hex(16)
        self._etcd: subprocess.Popen[bytes] | None = None
        self._apiserver: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        # In memory, for etcd's many small writes; it goes with the mount namespace.
        subprocess.run(["mount", "-t", "tmpfs", "control-plane", self.path], check=True)
        try:
            # The first test in a namespace finds it down.
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
            self._make_credentials()
            self.port, self._etcd_port, peer_port = _free_ports(3)
            self.url = f"https://{_LOOPBACK}:{self.port}"
            self.admin = Client(self.url, self.ca, self.admin_token)
            self._start_etcd(peer_port)
            self._start_apiserver()
            deadline = time.monotonic() + PATIENCE
            while not self._ready(deadline):
                time.sleep(0.02)
            # The server itself makes this namespace, a moment after it is ready.
            _wait_for(lambda: self.admin.get("/api/v1/namespaces/default"), deadline)
            self.admin.make_account("default", "default")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End both, at once; nothing is left."""
        if hasattr(self, "admin"):
            self.admin.close()
        for process in (self._apiserver, self._etcd):
            if process:
                process.kill()
                process.wait()
        subprocess.run(["umount", "--lazy", self.path], check=True)
        self._directory.cleanup()

    async def stop(self, *, kill: bool = False) -> None:
        """End the API server, orderly unless `kill`; etcd keeps what it knows."""
        assert self._apiserver
        self.admin.close()
        (self._apiserver.kill if kill else self._apiserver.terminate)()
        process = self._apiserver
        await eventually(lambda: process.poll() is not None)

    async def start(self) -> None:
        """Start the API server again, at the same address; returns when it is ready."""
        self._start_apiserver()
        deadline = time.monotonic() + PATIENCE
        while not self._ready(deadline):  # noqa: ASYNC110 - nothing tells us
            await asyncio.sleep(0.02)

    async def restart(self, *, kill: bool = False) -> None:
        """`stop`, then `start`: some four seconds."""
        await self.stop(kill=kill)
        await self.start()

    def token_for(
        self, namespace: str, account: str, *, seconds: int = 3600, pod: str | None = None
    ) -> str:
        """A token of the service account; 600 seconds at least.

        With `pod` it is what kubelet gives to that pod: it says on which node that is, and
        ends with the pod.
        """
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token"
        spec: Object = {"expirationSeconds": seconds}
        if pod is not None:
            made = self.admin.get(f"/api/v1/namespaces/{namespace}/pods/{pod}")
            uid = made["metadata"]["uid"]
            bound = {"kind": "Pod", "apiVersion": "v1", "name": pod, "uid": uid}
            spec["boundObjectRef"] = bound
        token: str = self.admin.post(path, {"spec": spec})["status"]["token"]
        return token

    def client_for(self, namespace: str, account: str, *, pod: str | None = None) -> Client:
        """A service account's own requests; to be closed. See `token_for`."""
        return Client(self.url, self.ca, self.token_for(namespace, account, pod=pod))

    def kubeconfig(
        self, path: Path, *, token: str | None = None, token_file: str = "", server: str = ""
    ) -> str:
        """Write one for the admin, or for `token`, or for what `token_file` has; its path.

        With `server` it leads elsewhere: to a proxy, say.
        """
        user = {"tokenFile": token_file} if token_file else {"token": token or self.admin_token}
        cluster = {"server": server or self.url, "certificate-authority": str(self.ca)}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "tests", "cluster": cluster}],
            "users": [{"name": "tests", "user": user}],
            "contexts": [{"name": "tests", "context": {"cluster": "tests", "user": "tests"}}],
            "current-context": "tests",
        }
        path.write_text(json.dumps(config))
        return str(path)

    def _make_credentials(self) -> None:
        _openssl(
            *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *("-keyout", str(self.key), "-out", str(self.ca), "-subj", "/CN=tests"),
            *("-addext", _SUBJECT_NAMES, "-addext", "keyUsage=digitalSignature,keyCertSign"),
        )
        accounts = str(self.path / "accounts.key")
        _openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", accounts)
        row = f"{self.admin_token},admin,admin,system:masters\n"
        (self.path / "tokens.csv").write_text(row)

    def _start_etcd(self, peer_port: int) -> None:
        clients = f"http://{_LOOPBACK}:{self._etcd_port}"
        peers = f"http://{_LOOPBACK}:{peer_port}"
        self._etcd = self._spawn(
            self._binaries.etcd,
            "etcd.log",
            f"--data-dir={self.path / 'etcd'}",
            f"--listen-client-urls={clients}",
            f"--advertise-client-urls={clients}",
            f"--listen-peer-urls={peers}",
            f"--initial-advertise-peer-urls={peers}",
            f"--initial-cluster=default={peers}",
            "--log-level=warn",
        )
        deadline = time.monotonic() + PATIENCE
        _wait_for(lambda: socket.create_connection((_LOOPBACK, self._etcd_port)).close(), deadline)

    def _start_apiserver(self) -> None:
        accounts = self.path / "accounts.key"
        self._apiserver = self._spawn(
            self._binaries.apiserver,
            "apiserver.log",
            f"--etcd-servers=http://{_LOOPBACK}:{self._etcd_port}",
            f"--bind-address={_LOOPBACK}",
            f"--advertise-address={_LOOPBACK}",
            f"--secure-port={self.port}",
            f"--tls-cert-file={self.ca}",
            f"--tls-private-key-file={self.key}",
            f"--token-auth-file={self.path / 'tokens.csv'}",
            f"--service-account-issuer={_ISSUER}",
            f"--service-account-key-file={accounts}",
            f"--service-account-signing-key-file={accounts}",
            "--authorization-mode=RBAC",
            "--allow-privileged",
            "--service-cluster-ip-range=10.0.0.0/24",
            "--endpoint-reconciler-type=none",
            "--enable-priority-and-fairness=false",
            "--profiling=false",
            *self._arguments,
        )

    def _spawn(self, program: str, log: str, *arguments: str) -> subprocess.Popen[bytes]:
        # It ends with this process, even one that was killed.
        command = ["setpriv", "--pdeathsig", "KILL", "--", program, *arguments]
        with (self.path / log).open("ab") as output:
            return subprocess.Popen(command, stdout=output, stderr=output, cwd=self.path)

    def _ready(self, deadline: float) -> bool:
        assert self._apiserver
        if self._apiserver.poll() is not None or time.monotonic() > deadline:
            log = (self.path / "apiserver.log").read_text()
            raise RuntimeError(f"kube-apiserver does not start:\n{log[-4000:]}")
        try:
            self.admin.get("/readyz")
        except (AnswerError, OSError, http.client.HTTPException):
            return False
        return True


def _openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


def _free_ports(count: int) -> list[int]:
    with_ports = [socket.socket() for _ in range(count)]
    try:
        for each in with_ports:
            each.bind((_LOOPBACK, 0))
        return [each.getsockname()[1] for each in with_ports]
    finally:
        for each in with_ports:
            each.close()


def _wait_for(attempt: Callable[[], object], deadline: float) -> None:
    while True:
        try:
            attempt()
        except (OSError, AnswerError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return
