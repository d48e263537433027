"""What `deploy/` amounts to, as kubectl would apply it."""

import json
import os
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import yaml

from tests.cluster.binaries import find, helm
from tests.cluster.client import Client, Object

DEPLOY = Path(__file__).parents[2] / "deploy"
NAMESPACE = "istio-system"
ACCOUNT = "nodeagent"


class ChartError(Exception):
    """Helm takes neither chart nor values like this."""


def build(folder: Path) -> list[Object]:
    """The objects of a kustomization."""
    built = subprocess.run(
        [*find().kustomize, str(folder)], check=True, stdout=subprocess.PIPE, text=True
    )
    return [document for document in yaml.safe_load_all(built.stdout) if document]


def render(
    values: Mapping[str, object] | None = None, *, kubernetes: str = "v1.33.0"
) -> list[Object]:
    """The objects of the chart with these values, in a cluster of this version.

    Raises `ChartError` with helm's words where it has none.
    """
    rendered: dict[str, str] = json.loads(_helm("template", values, kubernetes=kubernetes))
    return [
        document
        for _, text in sorted(rendered.items())
        for document in yaml.safe_load_all(text)
        if document
    ]


def lint(values: Mapping[str, object] | None = None) -> None:
    """Have helm check the chart with these values. Raises `ChartError`."""
    _helm("lint", values)


def _helm(command: str, values: Mapping[str, object] | None, *, kubernetes: str = "") -> str:
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(dict(values or {}), file)
        done = subprocess.run(
            [helm(), command, str(DEPLOY / "chart"), file.name],
            env={**os.environ, "KUBE_VERSION": kubernetes},
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode != 0:
        raise ChartError(done.stderr)
    return done.stdout


def apply(admin: Client, documents: Iterable[Object]) -> None:
    """Give them to the server, which has their namespace, as docs/cluster.md says.

    One that it would change or drop a field of is an error.
    """
    admin.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    # A controller's work, in a cluster that has one.
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}}
    admin.apply(account, namespace=NAMESPACE)
    for document in documents:
        admin.apply(document)
