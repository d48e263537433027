"""The capabilities of the DaemonSet, tried out on the kernel."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

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
_LOOK = """
import os
import sys

namespace = os.open(f"/proc/{sys.argv[1]}/ns/net", os.O_RDONLY)
from nodeagent import kernel
kernel.setns(namespace, kernel.CLONE_NEWNET)
open("/proc/thread-self/net/ip_tables_names").read()
from nodeagent.redirect.iptables_programs import Variant, save
from nodeagent.redirect.rules import Family
assert "*nat" in save(Variant.LEGACY, Family.V4)
"""
"""Look for the legacy tables of a pod."""
_INSTALL = """
import sys
from nodeagent.cni import confdir

list = sys.argv[1] + "/10-x.conflist"
confdir.replace(list, b"{ }", like=list)
"""
"""Write to a directory of another user, in the place of a file of that user's."""
_LEGACY = "XTABLES_LOCKFILE=/dev/null iptables-legacy -t nat -S >/dev/null"
_CALLS = (".open(", "kernel.setns(", "pod.ensure(", "read()", "save(", "confdir.replace(")


def _granted() -> list[str]:
    manifest = yaml.safe_load((DEPLOY / "base" / "daemonset.yaml").read_text())
    [container] = manifest["spec"]["template"]["spec"]["containers"]
    capabilities: list[str] = container["securityContext"]["capabilities"]["add"]
    return capabilities


@contextlib.contextmanager
def _process(*command: str) -> Iterator[str]:
    """The id of a process that has written a line, and lives until the end of the ``with``."""
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline(), f"it failed: {command}"
        try:
            yield str(process.pid)
        finally:
            process.kill()


def _in_a_netns(script: str) -> list[str]:
    return ["unshare", "--net", "sh", "-c", f"{script} && echo && exec sleep 60"]


@pytest.fixture
def pod() -> Iterator[str]:
    """A process of a pod, with all capabilities, in a network namespace of its own."""
    with _process(*_in_a_netns("ip link set lo up")) as pid:
        yield pid


@pytest.fixture
def legacy_pod() -> Iterator[str]:
    """A pod that has looked at its iptables-legacy tables, and has them since."""
    with _process(*_in_a_netns(_LEGACY)) as pid:
        yield pid


@pytest.fixture
def user_pod() -> Iterator[str]:
    """The same with ``hostUsers: false``."""
    with _process("unshare", "--user", "sh", "-c", "echo && exec sleep 60") as owner:
        for kind in ("uid", "gid"):
            Path(f"/proc/{owner}/{kind}_map").write_text("0 100000 65536")
        # Entered only now: to the namespace's own root belongs what is made from here on.
        enter = ["nsenter", f"--target={owner}", "--user", "--setuid=0", "--setgid=0"]
        with _process(*enter, *_in_a_netns(_LEGACY)) as pid:
            yield pid


@pytest.fixture
def foreign(tmp_path: Path) -> str:
    """A directory of another user, as Kubespray's are of ``kube``."""
    directory = tmp_path / "opt"
    directory.mkdir(mode=0o755)
    (directory / "10-x.conflist").write_text("{}")
    for path in (directory, directory / "10-x.conflist"):
        os.chown(path, 999, 999)
    return str(directory)


_Try = Callable[[str, str, list[str]], subprocess.CompletedProcess[str]]


@pytest.fixture
def attempt(request: pytest.FixtureRequest, tmp_path: Path) -> _Try:
    """Runs a script about the subject that a fixture makes, with these capabilities."""

    def run(script: str, subject: str, capabilities: list[str]) -> subprocess.CompletedProcess[str]:
        bounding = ",".join(["-all", *(f"+{each.lower()}" for each in capabilities)])
        program = [sys.executable, "-c", script, request.getfixturevalue(subject)]
        return subprocess.run(
            ["setpriv", f"--bounding-set={bounding}", "--inh-caps=-all", "--", *program],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "XTABLES_LOCKFILE": str(tmp_path / "lock")},
        )

    return run


@pytest.mark.parametrize(
    ("script", "subject"),
    [(_ENROL, "pod"), (_LOOK, "legacy_pod"), (_LOOK, "user_pod"), (_INSTALL, "foreign")],
)
def test_capabilities_suffice(attempt: _Try, script: str, subject: str) -> None:
    """L43: what the manifest grants is enough for a pod's rules, legacy tables, and the plugin."""
    done = attempt(script, subject, _granted())
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("script", "subject", "missing", "refused"),
    [
        (_ENROL, "pod", "NET_ADMIN", "pod.ensure("),
        (_ENROL, "pod", "SYS_ADMIN", "kernel.setns("),
        (_ENROL, "pod", "SYS_PTRACE", ".open("),
        (_LOOK, "legacy_pod", "NET_RAW", "save("),
        # DAC_OVERRIDE would do as well, and may be taken out where directories are root's.
        (_LOOK, "user_pod", "DAC_READ_SEARCH DAC_OVERRIDE", "read()"),
        (_INSTALL, "foreign", "DAC_OVERRIDE", "confdir.replace("),
    ],
)
def test_no_capability_is_idle(
    attempt: _Try, script: str, subject: str, missing: str, refused: str
) -> None:
    """Without any one of them it cannot, and this is the call that the kernel refuses."""
    granted = _granted()
    given = [each for each in granted if each not in missing.split()]
    done = attempt(script, subject, given)
    assert len(granted) == 6
    assert set(missing.split()) < set(granted)
    assert _failed_line(script, done.stderr) == refused
    assert script != _INSTALL or "is user 999's, mode 0755" in done.stderr


def _failed_line(script: str, traceback: str) -> str:
    """The call in the script, which Python names by its line only."""
    number = int(traceback.split('File "<string>", line ')[1].split(",", maxsplit=1)[0])
    line = script.splitlines()[number - 1]
    return next(call for call in _CALLS if call in line)
