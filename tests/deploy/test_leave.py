"""`deploy/leave`, on a node where Istio's agent has come back by nothing but the image."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from nodeagent import __version__
from nodeagent.config import SETTINGS
from tests.cluster.manifests import DEPLOY

ISTIOS = {"type": "istio-cni", "ambient_enabled": True}
OURS = {"type": "nodeagent", "socket": "/var/run/istio-cni/pluginevent.sock"}


@pytest.fixture
def container() -> dict[str, Any]:
    """The one that does the work."""
    manifest = yaml.safe_load((DEPLOY / "leave/daemonset.yaml").read_text())
    [found] = manifest["spec"]["template"]["spec"]["initContainers"]
    return dict(found)


def test_manifest(container: dict[str, Any]) -> None:
    """The image is this version's, and each variable is a setting of the agent's."""
    known = {setting.variable for setting in SETTINGS} | {"XTABLES_LOCKFILE"}
    assert container["image"] == f"nodeagent:{__version__}"
    assert {each["name"] for each in container["env"]} <= known


def test_our_entry_goes_and_istios_stays(container: dict[str, Any], tmp_path: Path) -> None:
    """What Istio's agent has put into the chain is as it was; the binary goes with our entry."""
    for name in ("etc/cni/net.d", "opt/cni/bin", "var/lib/cni"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "proc").symlink_to("/proc")
    (tmp_path / "opt/cni/bin/nodeagent").touch()
    conf = tmp_path / "etc/cni/net.d/10-pods.conflist"
    head = {"cniVersion": "1.0.0", "name": "pods"}
    conf.write_text(json.dumps({**head, "plugins": [{"type": "bridge"}, OURS, ISTIOS]}))
    environ = {each["name"]: each["value"] for each in container["env"]}
    environ |= {"HOST_PREFIX": str(tmp_path), "CNI_AGENT_RUN_DIR": str(tmp_path)}
    environ |= {"XTABLES_LOCKFILE": str(tmp_path / "lock"), "HOST_NETNS": "/proc/self/ns/net"}
    done = subprocess.run(
        [sys.executable, "-m", *container["command"]],
        env={"PATH": os.environ["PATH"], **environ},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(conf.read_text()) == {**head, "plugins": [{"type": "bridge"}, ISTIOS]}
    assert os.listdir(tmp_path / "opt/cni/bin") == []
