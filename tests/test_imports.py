"""What the agent and each command load: memory and the time of a start are mostly that.

A library that was updated may load more than before, or have moved what the agent uses
of it. Each test runs in a Python of its own, as what pytest has loaded is there already.
"""

import os
import subprocess
import sys

import certifi
import pytest

_NOT_AT_ALL = (
    "pyroute2.ndb",
    "pyroute2.iproute",
    "kubernetes.client",
    "kubernetes.aio.watch",
    "kubernetes.aio.client.api_client",
    "kubernetes.aio.client.models",
    "rich",
    "urllib3",
)
"""Which no part of the agent has a use for."""
_WITH_A_CLUSTER_ONLY = ("grpc", "kubernetes.aio.client")
_WITH_A_KUBECONFIG_ONLY = ("kubernetes.aio.config.kube_config", "pydantic")
_IN_THE_AGENT_ONLY = ("aiohttp", "google.protobuf", "nftables", "pyroute2.netlink")


def _loaded(code: str) -> frozenset[str]:
    """The modules that are there once a fresh Python has run `code`."""
    listing = f"import sys\ntry:\n    {code}\nfinally:\n    print('\\n'.join(['', *sys.modules]))"
    ran = subprocess.run(
        [sys.executable, "-c", listing], capture_output=True, text=True, check=False
    )
    loaded = frozenset(ran.stdout.splitlines())
    assert "sys" in loaded, ran.stderr
    return loaded


def test_the_agent() -> None:
    loaded = _loaded("import nodeagent.cli, nodeagent.agent.run")

    assert "pyroute2.netlink.rtnl" in loaded
    assert not loaded & {*_NOT_AT_ALL, *_WITH_A_CLUSTER_ONLY, *_WITH_A_KUBECONFIG_ONLY}


def test_access_from_a_pod_of_the_cluster() -> None:
    # Outside of a pod it ends with an error, after everything was imported.
    loaded = _loaded(
        "import asyncio, nodeagent.cli; from nodeagent.cluster.access import find_access;"
        " asyncio.run(find_access(None))"
    )

    assert "kubernetes.aio.config.incluster_config" in loaded
    assert not loaded & {*_NOT_AT_ALL, *_WITH_A_KUBECONFIG_ONLY}


@pytest.mark.parametrize(
    "command", ["--version", "--help", "run --help", "status", "history", "verify", "explain a/b"]
)
def test_what_does_not_act_on_the_node(command: str) -> None:
    loaded = _loaded(f"from nodeagent.cli import main; main({command.split()!r})")

    unwanted = {*_NOT_AT_ALL, *_WITH_A_CLUSTER_ONLY, *_WITH_A_KUBECONFIG_ONLY, *_IN_THE_AGENT_ONLY}
    assert "nodeagent.cli" in loaded
    assert not loaded & unwanted


_CONTEXTS = """
import ssl, sys
made, make = [], ssl.create_default_context
ssl.create_default_context = lambda: made.append(make()) or made[-1]
from nodeagent.cli import main
main(["run", "--kubeconfig", "/nowhere"])  # all is imported before it is read
print(*(context.cert_store_stats()["x509"] for context in made))
"""


def test_the_agent_reads_no_certificates_that_it_does_not_use() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", _CONTEXTS],
        env={**os.environ, "SSL_CERT_FILE": certifi.where()},
        capture_output=True,
        text=True,
        check=True,
    )

    assert "/nowhere" in ran.stderr
    # Where there is none any more, the reason for it in cli.py has gone.
    assert set(ran.stdout.split()) == {"0"}
