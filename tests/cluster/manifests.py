"""What `deploy/` amounts to, as kubectl would apply it."""

import subprocess
from collections.abc import Iterable
from pathlib import Path

import yaml

from tests.cluster.binaries import find
from tests.cluster.client import Client, Object

DEPLOY = Path(__file__).parents[2] / "deploy"
NAMESPACE = "istio-system"
ACCOUNT = "nodeagent"


def build(folder: Path) -> list[Object]:
    """The objects of a kustomization."""
    built = subprocess.run(
        [*find().kustomize, str(folder)], check=True, stdout=subprocess.PIPE, text=True
    )
    return [document for document in yaml.safe_load_all(built.stdout) if document]


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
