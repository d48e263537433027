"""The API server's address and the agent's credential, from the pod's files or a kubeconfig.

No credential is written to disk. OpenSSL takes certificates from files only, so those that
a kubeconfig has embedded are put into files in memory.
"""

import asyncio
import base64
import contextlib
import importlib
import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

import yaml

SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
"""The directory in which kubelet puts a pod's token, and renews it."""
_MAX_SIZE = 1 << 20
_EMBEDDED = ("certificate-authority", "client-certificate", "client-key")
_PLUGIN_TIMEOUT = 30.0
_PLUGIN_MARGIN = timedelta(minutes=1)
"""A credential that expires so soon is renewed before the next request."""
_NOT_A_KUBECONFIG = "it does not have the shape of a kubeconfig; `kubectl config view` shows one"


class NoClusterError(Exception):
    """The API server cannot be reached with what is there; the text names file and remedy."""


class Credential(Protocol):
    """What the agent shows to the API server."""

    async def authorization(self) -> str | None:
        """The header's value for a request now. Raises ``OSError``, ``ValueError``."""
        ...

    def refused(self) -> None:
        """Note that the server has refused the credential with status 401."""
        ...


class Access:
    """An HTTP client of the kubernetes library, and the credential to send with each request."""

    def __init__(self, client: Any, credential: Credential) -> None:
        """Take over `client`."""
        self.client = client
        self.credential = credential
        self.account = "the agent's user"
        """The user as which the agent asks, in words."""

    async def aclose(self) -> None:
        """End all connections."""
        await self.client.close()

    async def authorization(self) -> str | None:
        """The header's value for a request now. Raises ``OSError``, ``ValueError``."""
        value = await self.credential.authorization()
        self.account = _account(value) or self.account
        return value


async def find_access(kubeconfig: str | None) -> Access:
    """Read the credentials; nothing is asked of the server.

    `kubeconfig` None: the agent is in a pod. Raises ``NoClusterError``.
    """
    configuration = _library("client.configuration").Configuration()
    with contextlib.ExitStack() as memory:
        if kubeconfig is None:
            place, credential = SERVICE_ACCOUNT, _in_cluster(configuration)
        else:
            place = f"kubeconfig {kubeconfig}"
            credential = await _from_file(kubeconfig, configuration, memory)
        # Neither a proxy from the environment nor a cookie has a say in who answers.
        configuration.client_session_kwargs = {"trust_env": False}
        try:
            client = _library("client.rest").RESTClientObject(configuration)
        except OSError as error:  # ssl.SSLError is one
            raise NoClusterError(
                f"{place}: a certificate or key in it cannot be used: {error}"
            ) from error
        return Access(client, credential)


def _library(module: str) -> Any:
    """A module of kubernetes.aio, as `Any`: the library is typed in part only.

    The client and the configuration in a pod cost 0.5 MiB. ``config.kube_config`` costs
    10 MiB and 0.1 s, as it imports pydantic: in a pod it is not imported.
    """
    return importlib.import_module(f"kubernetes.aio.{module}")


def _config_exception() -> type[Exception]:
    exception: type[Exception] = _library("config.config_exception").ConfigException
    return exception


def _account(authorization: str | None) -> str | None:
    """The user that a token names (JWT, claim ``sub``); None where it is no such token."""
    try:
        claims = json.loads(base64.urlsafe_b64decode((authorization or "").split(".")[1] + "=="))
        subject = str(claims["sub"])
    except (ValueError, LookupError, TypeError):
        return None
    kind, _, name = subject.removeprefix("system:").partition(":")
    return f"ServiceAccount {name.replace(':', '/')}" if kind == "serviceaccount" else subject


def _in_cluster(configuration: Any) -> Credential:
    token = f"{SERVICE_ACCOUNT}/token"
    try:
        _library("config.incluster_config").InClusterConfigLoader(
            token, f"{SERVICE_ACCOUNT}/ca.crt"
        ).load_and_set(configuration)
    except (_config_exception(), OSError) as error:
        raise NoClusterError(
            f"no API server: {error} Outside of a cluster, name a kubeconfig (KUBECONFIG); in a "
            "pod, automountServiceAccountToken must not be false"
        ) from error
    # The loader's own renewal looks at the file once a minute only.
    return _TokenFile(token)


async def _from_file(path: str, configuration: Any, memory: contextlib.ExitStack) -> Credential:
    try:
        cluster, user = _chosen(_read(path))
        _check(cluster, user)
        plugin = _Plugin(user.pop("exec")) if "exec" in user else None
        if plugin:
            user |= await plugin.certificate()
        for part in (cluster, user):
            _move_to_memory(part, memory)
        folder = _folder_of(path)
        await (
            _library("config.kube_config")
            .KubeConfigLoader(_alone(cluster, user), config_base_path=folder)
            .load_and_set(configuration)
        )
        if plugin:
            return plugin
        if "tokenFile" in user and not user.get("token"):
            return _TokenFile(str(Path(folder, user["tokenFile"])))
        return _Fixed(configuration.api_key.get("BearerToken"))
    except FileNotFoundError as error:
        reason = f"{error.filename} does not exist; name another with KUBECONFIG"
        raise NoClusterError(f"kubeconfig {path}: {reason}") from error
    except (LookupError, TypeError, AttributeError) as error:
        raise NoClusterError(f"kubeconfig {path}: {_NOT_A_KUBECONFIG}") from error
    except (_config_exception(), OSError, ValueError) as error:
        raise NoClusterError(f"kubeconfig {path}: {' '.join(str(error).split())}") from error


def _folder_of(path: str) -> str:
    return str(Path(path).absolute().parent)


def _read(path: str) -> Mapping[str, Any]:
    with open(path, "rb") as file:
        data = file.read(_MAX_SIZE + 1)
    if len(data) > _MAX_SIZE:
        raise ValueError(f"it has more than {_MAX_SIZE} bytes")
    try:
        config = yaml.safe_load(data)
    except yaml.YAMLError as error:
        raise ValueError(f"it is not YAML: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(_NOT_A_KUBECONFIG)
    return config


def _chosen(config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    name = config.get("current-context")
    if not name:
        raise ValueError("it has no current-context; `kubectl config use-context NAME` sets it")
    context = _entry(config, "context", name)
    return _entry(config, "cluster", context["cluster"]), _entry(config, "user", context["user"])


def _entry(config: Mapping[str, Any], kind: str, name: str) -> dict[str, Any]:
    for entry in config.get(f"{kind}s") or ():
        if entry["name"] == name:
            return dict(entry[kind] or {})
    raise ValueError(f"it has no {kind} {name!r}, which its current context needs")


def _check(cluster: Mapping[str, Any], user: Mapping[str, Any]) -> None:
    if not str(cluster.get("server", "")).startswith("https://"):
        raise ValueError("the cluster's server has to be an https:// address")
    if cluster.get("insecure-skip-tls-verify"):
        raise ValueError(
            "insecure-skip-tls-verify is not supported: whoever answers would have the agent's "
            "credential; give certificate-authority instead"
        )
    if "auth-provider" in user:
        raise ValueError("auth-provider is not supported; use exec, a token or a certificate")


def _alone(cluster: Mapping[str, Any], user: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "current-context": "agent",
        "contexts": [{"name": "agent", "context": {"cluster": "agent", "user": "agent"}}],
        "clusters": [{"name": "agent", "cluster": cluster}],
        "users": [{"name": "agent", "user": user}],
    }


def _move_to_memory(part: dict[str, Any], memory: contextlib.ExitStack) -> None:
    for key in _EMBEDDED:
        content = part.pop(f"{key}-data", None)
        if content is None:
            continue
        try:
            plain = base64.b64decode(content, validate=True)
        except ValueError:
            raise ValueError(f"{key}-data is not base64") from None
        fd = os.memfd_create("credential", os.MFD_CLOEXEC)
        memory.callback(os.close, fd)
        with open(fd, "wb", closefd=False) as file:
            file.write(plain)
        part[key] = f"/proc/self/fd/{fd}"


class _Fixed:
    """A token in the kubeconfig itself; no token where the kubeconfig has a certificate."""

    def __init__(self, value: str | None) -> None:
        self._value = value

    async def authorization(self) -> str | None:
        return self._value

    def refused(self) -> None:
        pass


class _TokenFile:
    """A token in a file that somebody renews, and that is read for each request."""

    def __init__(self, path: str) -> None:
        self._path = path

    async def authorization(self) -> str | None:
        return f"Bearer {self._read().strip()}"

    def refused(self) -> None:
        pass

    def _read(self) -> str:
        with open(self._path, encoding="ascii") as file:
            return file.read(_MAX_SIZE)


class _Plugin:
    """A program that prints a credential (``exec`` in a kubeconfig).

    It is run again where the credential has expired or was refused.

    Tokens are renewed; a certificate lasts until the agent starts anew.
    """

    def __init__(self, spec: Mapping[str, Any]) -> None:
        library = _library("config.kube_config")
        self._provider = library.ExecProvider(library.ConfigNode("exec", spec))
        self._command = spec["command"]
        self._status: Mapping[str, Any] = {}
        self._stale_from = datetime.min.replace(tzinfo=UTC)
        self._turn = asyncio.Lock()

    async def certificate(self) -> dict[str, str]:
        """The program's key and certificate, if any, under the names that a kubeconfig has."""
        await self.authorization()
        names = {"client-certificate": "clientCertificateData", "client-key": "clientKeyData"}
        found = {key: self._status.get(name) for key, name in names.items()}
        if not all(found.values()) and "token" not in self._status:
            raise ValueError(f"exec: {self._command} gave no token, and no certificate with key")
        return {
            f"{key}-data": base64.b64encode(pem.encode()).decode()
            for key, pem in found.items()
            if pem
        }

    async def authorization(self) -> str | None:
        async with self._turn:
            if datetime.now(UTC) >= self._stale_from:
                await self._run()
        token = self._status.get("token")
        return f"Bearer {token}" if token else None

    def refused(self) -> None:
        self._stale_from = datetime.min.replace(tzinfo=UTC)

    async def _run(self) -> None:
        try:
            async with asyncio.timeout(_PLUGIN_TIMEOUT):
                self._status = dict(await self._provider.run())
            expiry = self._status.get("expirationTimestamp")
            if expiry is None:
                self._stale_from = datetime.max.replace(tzinfo=UTC)
            else:
                self._stale_from = datetime.fromisoformat(expiry) - _PLUGIN_MARGIN
        except (_config_exception(), OSError, ValueError, TypeError) as error:
            reason = str(error) or f"no answer within {_PLUGIN_TIMEOUT:.0f} s"
            raise ValueError(f"exec: {self._command} gave no credential: {reason}") from error
