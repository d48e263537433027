"""The DaemonSet's capabilities, where pods and directories are of other users.

Needs: root itself, which may map users; what conftest.py says.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.capabilities import granted
from tests.deploy.capability_scripts import (
    INSTALL,
    LEGACY,
    LOOK,
    attempt,
    failed_line,
    in_a_netns,
    process,
)

_CHECK = """
import sys
from nodeagent import config
from nodeagent.commands.check.check import show
from nodeagent.commands.check.places import check_directories

names = ("cni_net_dir", "cni_bin_dir", "cni_agent_run_dir")
flags = dict.fromkeys(names, sys.argv[1])
show(check_directories(config.load({**flags, "host_prefix": ""}, {})))
"""


@pytest.fixture
def user_pod() -> Iterator[str]:
    """A pod with ``hostUsers: false`` that has tables of iptables-legacy."""
    with process("unshare", "--user", "sh", "-c", "echo && exec sleep 60") as owner:
        for kind in ("uid", "gid"):
            Path(f"/proc/{owner}/{kind}_map").write_text("0 100000 65536")
        # Entered only now: to the namespace's own root belongs what is made from here on.
        enter = ["nsenter", f"--target={owner}", "--user", "--setuid=0", "--setgid=0"]
        with process(*enter, *in_a_netns(LEGACY)) as pid:
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


def test_pod_with_users_of_its_own(user_pod: str, tmp_path: Path) -> None:
    """L43: its /proc/net, which belongs to its own root, can be read, and its tables too."""
    done = attempt(LOOK, user_pod, sorted(granted().capabilities), tmp_path / "lock")
    assert done.returncode == 0, done.stderr
    # One of the two is enough: DAC_OVERRIDE may be taken out where directories are root's.
    for missing in ("DAC_READ_SEARCH", "DAC_OVERRIDE"):
        given = granted().without(missing).capabilities
        done = attempt(LOOK, user_pod, sorted(given), tmp_path / "lock")
        assert done.returncode == 0, done.stderr
    given = granted().without("DAC_READ_SEARCH", "DAC_OVERRIDE").capabilities
    done = attempt(LOOK, user_pod, sorted(given), tmp_path / "lock")
    assert "read()" in failed_line(LOOK, done.stderr)


def test_directory_of_another_user(foreign: str, tmp_path: Path) -> None:
    """Kubespray's directories can be written to; without DAC_OVERRIDE the owner is named."""
    done = attempt(INSTALL, foreign, sorted(granted().capabilities), tmp_path / "lock")
    assert done.returncode == 0, done.stderr
    given = granted().without("DAC_OVERRIDE").capabilities
    done = attempt(INSTALL, foreign, sorted(given), tmp_path / "lock")
    assert "confdir.replace(" in failed_line(INSTALL, done.stderr)
    assert "is user 999's, mode 0755" in done.stderr


def test_owner_of_a_directory_is_told_by_the_check(foreign: str, tmp_path: Path) -> None:
    """`nodeagent check` has the owner of a directory that cannot be used, and the capability."""
    given = sorted(granted().without("DAC_OVERRIDE").capabilities)
    done = attempt(_CHECK, foreign, given, tmp_path / "lock")
    [line] = [line for line in done.stdout.splitlines() if "CNI programs" in line]
    assert line.startswith("FAIL")
    assert f"{foreign} is user 999's, mode 0755" in line
    assert line.endswith("securityContext.capabilities.add: [DAC_OVERRIDE], as deploy/base has it")
    done = attempt(_CHECK, foreign, sorted(granted().capabilities), tmp_path / "lock")
    assert "FAIL  CNI" not in done.stdout
