"""The capabilities of the DaemonSet, tried out on the kernel.

Those for pods and directories of other users are tried in tests/runtime, by root itself.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.capabilities import granted
from tests.deploy.capability_scripts import (
    LEGACY,
    LOOK,
    attempt,
    failed_line,
    in_a_netns,
    process,
)

_ENROLL = """
import sys
from nodeagent.linux import syscalls
from nodeagent.netns.netns import Netns
from nodeagent.redirect import in_pod
from tests.lab.spec import spec

with Netns.open(f"/proc/{sys.argv[1]}/ns/net") as netns:
    syscalls.setns(netns.fd, syscalls.CLONE_NEWNET)
in_pod.ensure(spec())
"""


@pytest.fixture
def pod() -> Iterator[str]:
    """A process of a pod, with all capabilities, in a network namespace of its own."""
    with process(*in_a_netns("ip link set lo up")) as pid:
        yield pid


@pytest.fixture
def legacy_pod() -> Iterator[str]:
    """A pod that has looked at its iptables-legacy tables, and has them since."""
    with process(*in_a_netns(LEGACY)) as pid:
        yield pid


@pytest.mark.parametrize(("script", "subject"), [(_ENROLL, "pod"), (LOOK, "legacy_pod")])
def test_capabilities_suffice(
    request: pytest.FixtureRequest, tmp_path: Path, script: str, subject: str
) -> None:
    """L43: what the manifest grants is enough for a pod's rules, and for legacy tables."""
    pid = request.getfixturevalue(subject)
    done = attempt(script, pid, sorted(granted().capabilities), tmp_path / "lock")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("missing", "refused"),
    [("NET_ADMIN", "in_pod.ensure("), ("SYS_ADMIN", "syscalls.setns("), ("SYS_PTRACE", ".open(")],
)
def test_no_capability_is_idle(pod: str, tmp_path: Path, missing: str, refused: str) -> None:
    """Without any one of them it cannot, and this is the call that the kernel refuses."""
    given = granted().without(missing).capabilities
    done = attempt(_ENROLL, pod, sorted(given), tmp_path / "lock")
    assert refused in failed_line(_ENROLL, done.stderr)


def test_raw_sockets_are_for_legacy_tables(legacy_pod: str, tmp_path: Path) -> None:
    """Without NET_RAW the tables that an earlier agent has left in a pod cannot be read."""
    given = granted().without("NET_RAW").capabilities
    done = attempt(LOOK, legacy_pod, sorted(given), tmp_path / "lock")
    assert "save(" in failed_line(LOOK, done.stderr)


def test_no_capability_is_untried() -> None:
    """Each that the manifest grants has a test here or in tests/runtime that needs it."""
    tried = {"NET_ADMIN", "SYS_ADMIN", "SYS_PTRACE", "NET_RAW", "DAC_READ_SEARCH", "DAC_OVERRIDE"}
    assert granted().capabilities == tried
