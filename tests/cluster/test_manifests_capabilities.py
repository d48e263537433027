"""The capabilities of the DaemonSet, tried out on the kernel."""

import subprocess
import sys
from collections.abc import Iterator

import pytest
import yaml

from tests.cluster.manifests import DEPLOY

_ENROL = """
import sys
from nodeagent import kernel
from nodeagent.netns.namespace import NetworkNamespace
from nodeagent.redirect import pod
from tests.kernel.spec import spec

with NetworkNamespace.open(f"/proc/{sys.argv[1]}/ns/net") as namespace:
    kernel.setns(namespace.fd, kernel.CLONE_NEWNET)
pod.ensure(spec())
"""


def _granted() -> list[str]:
    manifest = yaml.safe_load((DEPLOY / "base" / "daemonset.yaml").read_text())
    [container] = manifest["spec"]["template"]["spec"]["containers"]
    capabilities: list[str] = container["securityContext"]["capabilities"]["add"]
    return capabilities


@pytest.fixture
def pid() -> Iterator[int]:
    """A process of a pod, with all capabilities, in a network namespace of its own."""
    script = "ip link set lo up && echo && exec sleep 60"
    command = ["unshare", "--net", "sh", "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        yield process.pid
        process.kill()


def _enrol(pid: int, capabilities: list[str]) -> subprocess.CompletedProcess[str]:
    bounding = ",".join(["-all", *(f"+{each.lower()}" for each in capabilities)])
    program = [sys.executable, "-c", _ENROL, str(pid)]
    return subprocess.run(
        ["setpriv", f"--bounding-set={bounding}", "--inh-caps=-all", "--", *program],
        capture_output=True,
        text=True,
        check=False,
    )


def test_capabilities_suffice(pid: int) -> None:
    """With what the manifest grants, the agent redirects a pod found through procfs."""
    done = _enrol(pid, _granted())
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("missing", "refused"),
    [("NET_ADMIN", "pod.ensure("), ("SYS_ADMIN", "kernel.setns("), ("SYS_PTRACE", ".open(")],
)
def test_no_capability_is_idle(pid: int, missing: str, refused: str) -> None:
    """Without any one of them it cannot, and this is the call that the kernel refuses."""
    granted = _granted()
    done = _enrol(pid, [each for each in granted if each != missing])
    assert len(granted) == 3
    assert missing in granted
    assert _failed_line(done.stderr) == refused


def _failed_line(traceback: str) -> str:
    """The call in the script, which Python names by its line only."""
    number = int(traceback.split('File "<string>", line ')[1].split(",", maxsplit=1)[0])
    line = _ENROL.splitlines()[number - 1]
    return next(call for call in (".open(", "kernel.setns(", "pod.ensure(") if call in line)
