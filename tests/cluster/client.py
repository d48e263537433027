"""The tests' own way to the API: plain requests, synchronous, no library of the agent's."""

import http.client
import json
import ssl
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from tests.eventually import PATIENCE

Object = dict[str, Any]

MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"
APPLY = "application/apply-patch+yaml"


class AnswerError(Exception):
    """The server said no; `body` is its ``Status`` object, or its text."""

    def __init__(self, status: int, body: object) -> None:
        message = body.get("message") if isinstance(body, dict) else body
        super().__init__(f"{status}: {message}")
        self.status = status
        self.body = body


class Client:
    """One user's requests; to be closed."""

    def __init__(self, url: str, ca: Path, token: str) -> None:
        self._host = urlsplit(url).netloc
        self._tls = ssl.create_default_context(cafile=str(ca))
        self._token = token
        self._connection: http.client.HTTPSConnection | None = None
        self._plural = cache(self._look_up)

    def close(self) -> None:
        if self._connection:
            self._connection.close()
            self._connection = None

    def request(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        kind: str = "application/json",
        params: Mapping[str, str] | None = None,
    ) -> Object:
        """Ask, and return the object. Raises `AnswerError`, ``OSError``."""
        target = f"{path}?{urlencode(params)}" if params else path
        text = None if body is None else json.dumps(body)
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": kind}
        status, answer = self._exchange(method, target, text, headers)
        try:
            value = json.loads(answer)
        except ValueError:
            value = answer.decode()
        if status >= http.client.BAD_REQUEST:
            raise AnswerError(status, value)
        return value if isinstance(value, dict) else {"text": value}

    def get(self, path: str, **params: str) -> Object:
        return self.request("GET", path, params=params)

    def post(self, path: str, body: object) -> Object:
        return self.request("POST", path, body)

    def put(self, path: str, body: object) -> Object:
        return self.request("PUT", path, body)

    def patch(self, path: str, body: object, *, kind: str = MERGE) -> Object:
        return self.request("PATCH", path, body, kind=kind)

    def delete(self, path: str, *, grace: int | None = None) -> Object:
        """Delete; a pod on a node lasts until its kubelet says so, unless `grace` is 0."""
        options = {"propagationPolicy": "Background"} | (
            {} if grace is None else {"gracePeriodSeconds": grace}
        )
        return self.request("DELETE", path, options)

    def apply(self, document: Object, *, namespace: str = "") -> Object:
        """Server-side apply; an unknown field or a wrong value is an error."""
        return self.request(
            "PATCH",
            self.path_of(document, namespace=namespace),
            document,
            kind=APPLY,
            params={"fieldManager": "tests", "fieldValidation": "Strict", "force": "true"},
        )

    def path_of(self, document: Object, *, namespace: str = "") -> str:
        """Where the API has this object; `namespace` counts where it names none."""
        metadata = document["metadata"]
        root, plural, namespaced = self._plural(document["apiVersion"], document["kind"])
        namespace = metadata.get("namespace") or namespace
        within = f"/namespaces/{quote(namespace)}" if namespaced else ""
        return f"{root}{within}/{plural}/{quote(metadata['name'])}"

    def make_namespace(self, name: str, labels: Mapping[str, str] | None = None) -> Object:
        """A namespace in which pods can be made: with the service account ``default``."""
        metadata = {"name": name, "labels": dict(labels or {})}
        made = self.post("/api/v1/namespaces", {"metadata": metadata})
        self.make_account(name, "default")
        return made

    def make_account(self, namespace: str, name: str) -> Object:
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts"
        return self.post(path, {"metadata": {"name": name}})

    def make_node(self, name: str, *, labels: Mapping[str, str] | None = None) -> Object:
        metadata = {"name": name, "labels": dict(labels or {})}
        return self.post("/api/v1/nodes", {"metadata": metadata})

    def make_pod(
        self,
        namespace: str,
        name: str,
        *,
        node: str,
        labels: Mapping[str, str] | None = None,
        annotations: Mapping[str, str] | None = None,
        addresses: Sequence[str] = (),
        phase: str = "Running",
        spec: Mapping[str, object] | None = None,
    ) -> Object:
        """A pod as a kubelet reports it: bound to `node`, with its status."""
        metadata = {"name": name, "labels": dict(labels or {})}
        metadata["annotations"] = dict(annotations or {})
        containers = [{"name": "main", "image": "example.test/none:1"}]
        spec = {"nodeName": node, "containers": containers, **(spec or {})}
        self.post(f"/api/v1/namespaces/{namespace}/pods", {"metadata": metadata, "spec": spec})
        return self.set_pod_status(namespace, name, addresses=addresses, phase=phase)

    def set_pod_status(
        self, namespace: str, name: str, *, addresses: Sequence[str], phase: str = "Running"
    ) -> Object:
        """What a kubelet says of a pod."""
        status: Object = {"phase": phase, "podIPs": [{"ip": address} for address in addresses]}
        status["podIP"] = addresses[0] if addresses else None
        path = f"/api/v1/namespaces/{namespace}/pods/{name}/status"
        return self.patch(path, {"status": status})

    def bind(self, role: str, *, namespace: str, account: str) -> Object:
        """Give the ``ClusterRole`` to a service account, everywhere; returns the binding."""
        subject = {"kind": "ServiceAccount", "namespace": namespace, "name": account}
        reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role}
        return self.post(
            "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
            {
                "metadata": {"name": f"{role}-{namespace}-{account}"},
                "subjects": [subject],
                "roleRef": reference,
            },
        )

    def make_role(self, name: str, *rules: Mapping[str, Sequence[str]]) -> Object:
        """A ``ClusterRole``; a rule is ``{"apiGroups": …, "resources": …, "verbs": …}``."""
        path = "/apis/rbac.authorization.k8s.io/v1/clusterroles"
        return self.post(path, {"metadata": {"name": name}, "rules": rules})

    def _look_up(self, version: str, kind: str) -> tuple[str, str, bool]:
        root = f"/apis/{version}" if "/" in version else f"/api/{version}"
        for resource in self.get(root)["resources"]:
            if resource["kind"] == kind and "/" not in resource["name"]:
                return root, resource["name"], resource["namespaced"]
        raise LookupError(f"the server has no {kind} in {version}")

    def _exchange(
        self, method: str, target: str, text: str | None, headers: dict[str, str]
    ) -> tuple[int, bytes]:
        kept = self._connection is not None
        try:
            return self._send(method, target, text, headers)
        except (http.client.HTTPException, OSError):
            self.close()
            # The server has closed the connection that was kept: nothing was asked yet.
            if not kept:
                raise
            return self._send(method, target, text, headers)

    def _send(
        self, method: str, target: str, text: str | None, headers: dict[str, str]
    ) -> tuple[int, bytes]:
        if self._connection is None:
            self._connection = http.client.HTTPSConnection(
                self._host, timeout=PATIENCE, context=self._tls
            )
        self._connection.request(method, target, text, headers)
        with self._connection.getresponse() as response:
            return response.status, response.read()
