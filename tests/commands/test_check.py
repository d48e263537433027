"""`nodeagent check`: each check where it holds and where it does not, on the real kernel."""

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from nodeagent import config
from nodeagent.cni.install.loading import UNKNOWN, Loading
from nodeagent.commands.check.chain import check_chain_directories, check_entry
from nodeagent.commands.check.check import bad, good, lines, show
from nodeagent.commands.check.distributions import DISTRIBUTIONS
from nodeagent.commands.check.distributions import found as distribution_of
from nodeagent.commands.check.node import (
    check_capabilities,
    check_legacy_lock,
    check_rules,
    check_selinux,
)
from nodeagent.commands.check.places import (
    check_directories,
    check_host_netns,
    check_netns_mounts,
    check_procfs,
    check_zds_socket,
)
from nodeagent.commands.check.run import run_checks
from nodeagent.commands.check.runtime import check_runtime
from nodeagent.config import Settings

_ALL = 0x1FF_FFFF_FFFF
_WITHOUT_PTRACE = _ALL & ~(1 << 19)
_WITHOUT_RAW = _ALL & ~(1 << 13)
_WITHOUT_SEARCH = _ALL & ~(1 << 2)
_WITHOUT_DAC = _ALL & ~(1 << 1 | 1 << 2)

_CHECK = """
import asyncio
from nodeagent import config
from nodeagent.commands.check.check import show
from nodeagent.commands.check.run import run_checks
settings = config.load({"pod_manifests": "."}, {})
raise SystemExit(show(asyncio.run(run_checks(settings))))
"""


def settings(**flags: str) -> Settings:
    return config.load({"host_prefix": "", **flags}, {})


@contextlib.contextmanager
def tmpfs(path: Path, *options: str) -> Iterator[None]:
    path.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", *options, "tests", path], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", path], check=True)


def test_every_check_is_one_line_with_its_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    """What failed says what to do, on one line whatever a server answered; the status says so."""
    checks = [good("a", "fine"), bad("bcd", "two\nlines \x1b[2J", "do this")]
    assert show(checks) == 1
    assert capsys.readouterr().out.splitlines() == lines(checks)
    assert lines(checks)[0] == "ok    a    fine"
    assert lines(checks)[1] == r"FAIL  bcd  two\nlines \x1b[2J; remedy: do this"
    assert show(checks[:1]) == 0


@pytest.mark.parametrize(
    ("flags", "legacy", "effective", "lacking"),
    [
        ({}, True, _ALL, ""),
        ({}, False, _WITHOUT_PTRACE, "SYS_PTRACE"),
        ({"pod_manifests": "."}, False, _WITHOUT_PTRACE, ""),
        ({}, False, _WITHOUT_RAW, ""),
        ({}, True, _WITHOUT_RAW, "NET_RAW"),
        ({"native_nftables": "false"}, False, _WITHOUT_RAW, "NET_RAW"),
        ({}, True, _WITHOUT_SEARCH, ""),
        ({}, True, _WITHOUT_DAC, "DAC_READ_SEARCH"),
        ({}, False, _WITHOUT_DAC, ""),
        ({}, False, 0, "NET_ADMIN, SYS_ADMIN, SYS_PTRACE"),
    ],
)
def test_capabilities_are_those_that_are_used(
    tmp_path: Path, flags: dict[str, str], legacy: bool, effective: int, lacking: str
) -> None:
    """Each is asked for where a setting or an earlier agent's tables need it, and named."""
    (tmp_path / "status").write_text(f"Name:\tx\nCapPrm:\t0\nCapEff:\t{effective:016x}\n")
    if legacy:
        (tmp_path / "tables").touch()
    check = check_capabilities(
        settings(**flags), str(tmp_path / "status"), str(tmp_path / "tables")
    )
    assert check.ok is (lacking == "")
    assert not lacking or check.detail.startswith(f"{lacking} missing")
    assert all(name in check.remedy for name in lacking.split(", ") if name)


def test_lock_of_legacy_programs_has_a_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a read-only root the lock needs a setting, which is named; nothing is left behind."""
    tables = tmp_path / "tables"
    with tmpfs(tmp_path / "run", "-o", "ro"):
        monkeypatch.setenv("XTABLES_LOCKFILE", str(tmp_path / "run/xtables.lock"))
        assert check_legacy_lock(settings(), str(tables)) is None, "no such tables, no lock"
        tables.touch()
        refused = check_legacy_lock(settings(), str(tables))
    monkeypatch.setenv("XTABLES_LOCKFILE", str(tmp_path / "xtables.lock"))
    first = check_legacy_lock(settings(), str(tables))
    (tmp_path / "xtables.lock").touch(0o600)
    second = check_legacy_lock(settings(), str(tables))
    assert refused
    assert first
    assert second
    assert (refused.ok, first.ok, second.ok) == (False, True, True)
    assert "Read-only file system" in refused.detail
    assert "XTABLES_LOCKFILE=/var/run/istio-cni/xtables.lock" in refused.remedy
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "tables", "xtables.lock"]


_ONE = Loading(
    most=1, conf_dir="/etc/cni/net.d", bin_dirs=("/opt/cni/bin",), source="containerd 1.7.20"
)


def test_directories_of_the_runtime_are_the_ones(tmp_path: Path) -> None:
    """Other directories than the runtime's are a fault, with the settings and the mount."""
    where = settings(cni_net_dir="/etc/cni/net.d", host_prefix=str(tmp_path))
    assert check_chain_directories(where, _ONE).ok
    (tmp_path / "proc/1/root/var/lib/rancher/k3s/agent").mkdir(parents=True)
    k3s = replace(_ONE, conf_dir="/var/lib/rancher/k3s/agent/etc/cni/net.d", bin_dirs=("/x",))
    check = check_chain_directories(where, k3s)
    assert not check.ok
    assert f"CNI_NET_DIR={k3s.conf_dir} and CNI_BIN_DIR=/x" in check.remedy
    assert "a mount of /var/lib/rancher/k3s/data (deploy/components/k3s)" in check.remedy
    unknown = check_chain_directories(where, UNKNOWN)
    assert unknown.ok
    assert "usual on k3s: /var/lib/rancher/k3s/agent/etc/cni/net.d and" in unknown.detail
    # A link to the runtime's directory is that directory.
    (tmp_path / "etc").symlink_to("/usr/etc")
    there = replace(_ONE, conf_dir="/usr/etc/cni/net.d")
    assert check_chain_directories(where, there).ok


def test_every_distribution_has_its_directories(tmp_path: Path) -> None:
    """What `check` knows of distributions is what docs/cluster.md tells of them."""
    table = (Path(__file__).parents[2] / "docs/cluster.md").read_text()
    for each in DISTRIBUTIONS:
        root = tmp_path / each.name
        (root / f"proc/1/root{each.marker}").mkdir(parents=True)
        assert distribution_of(settings(host_prefix=str(root))) == each
        [line] = [line for line in table.splitlines() if line.startswith(f"| {each.name}")]
        assert f"`{each.net_dir}`" in line
        assert f"`{each.bin_dir}`" in line
    assert distribution_of(settings(host_prefix=str(tmp_path / "none"))) is None


def test_place_of_the_entry_is_told(tmp_path: Path) -> None:
    """Where the entry goes and why not into a file of its own; nothing is written."""
    where = settings(cni_net_dir=str(tmp_path))
    empty = check_entry(where, _ONE)
    assert (empty.ok, "no CNI plugin has written" in empty.detail) == (False, True)
    primary = tmp_path / "10-x.conflist"
    primary.write_text('{"cniVersion": "1.0.0", "name": "n", "plugins": [{"type": "x"}]}')
    assert "02-istio-cni.conflist, a copy of 10-x.conflist" in check_entry(where, _ONE).detail
    several = check_entry(where, replace(_ONE, most=0))
    assert several.ok
    assert "into 10-x.conflist: containerd 1.7.20 loads all configurations" in several.detail
    assert list(tmp_path.iterdir()) == [primary]


@pytest.mark.parametrize(
    ("granted", "failed", "remedy"),
    [
        ("net_admin", ["capabilities", "nftables", "host"], "the capability SYS_ADMIN"),
        ("sys_admin", ["capabilities", "nftables"], "CAP_NET_ADMIN is missing"),
    ],
)
def test_agent_without_rights_is_told_what_is_missing(
    tmp_path: Path, granted: str, failed: list[str], remedy: str
) -> None:
    """A process that may not enter namespaces, or write rules, is told so by what it tried."""
    done = subprocess.run(
        ["setpriv", f"--bounding-set=-all,+{granted}", "--", sys.executable, "-c", _CHECK],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )
    shown = [line for line in done.stdout.splitlines() if line.startswith("FAIL")]
    assert done.returncode == 1, done.stderr
    assert [line.split()[1] for line in shown] == failed
    assert remedy in shown[1]


@pytest.mark.parametrize("native", ["true", "false"])
def test_rules_are_really_made(native: str) -> None:
    """This kernel takes a pod's rules, in either language, and nothing of it stays here."""
    before = subprocess.check_output(["nft", "list", "ruleset"])
    check = check_rules(settings(native_nftables=native, force_iptables_binary="nft"))
    assert check.ok, check.detail
    assert check.name == ("nftables" if native == "true" else "iptables")
    assert subprocess.check_output(["nft", "list", "ruleset"]) == before


@pytest.mark.parametrize(
    ("context", "enforcing", "ok", "words"),
    [
        ("system_u:system_r:container_t:s0:c1,c2", "1", False, "container_t"),
        ("system_u:system_r:container_t:s0:c1,c2", "", False, "container_t"),
        ("system_u:system_r:container_t:s0:c1,c2", "0", True, "permissive"),
        ("system_u:system_r:spc_t:s0", "1", True, "enforcing, as spc_t"),
        ("unconfined", "", True, "not in use"),
        ("cri-containerd.apparmor.d (enforce)", "", True, "not in use"),
    ],
)
def test_selinux_is_named_with_the_setting(
    tmp_path: Path, context: str, enforcing: str, ok: bool, words: str
) -> None:
    """L22: a confined type in an enforcing kernel is told, with the setting that helps."""
    (tmp_path / "current").write_text(f"{context}\n\0")
    if enforcing:
        (tmp_path / "enforce").write_text(enforcing)
    check = check_selinux(str(tmp_path / "current"), str(tmp_path))
    assert (check.ok, words in check.detail) == (ok, True)
    assert ("{type: spc_t}" in check.remedy) is not ok


async def test_namespace_of_the_host_is_entered(tmp_path: Path) -> None:
    """The host's namespace is tried, not only looked for; without procfs the mount is named."""
    assert (await check_host_netns(settings())).ok
    check = await check_host_netns(settings(host_prefix=str(tmp_path)))
    assert not check.ok
    assert f"the host's /proc at {tmp_path}/proc" in check.remedy


def test_processes_are_seen_through_the_prefix(tmp_path: Path) -> None:
    """The host's procfs is where the prefix says, or its mount is named."""
    assert check_procfs(settings()).ok
    (tmp_path / "proc").symlink_to("/proc")
    assert check_procfs(settings(host_prefix=str(tmp_path))).ok
    check = check_procfs(settings(host_prefix=str(tmp_path / "nowhere")))
    assert not check.ok
    assert f"mount the host's /proc at {tmp_path}/nowhere/proc" in check.remedy


def test_mounts_of_the_host_have_to_follow(tmp_path: Path) -> None:
    """L4: a private mount of /run never shows the namespaces of pods that start later."""
    inside = settings(host_prefix=str(tmp_path))
    assert check_netns_mounts(settings()) is None
    nothing = check_netns_mounts(inside)
    with tmpfs(tmp_path / "var/run"):
        private = check_netns_mounts(inside)
        subprocess.run(["mount", "--make-shared", tmp_path / "var/run"], check=True)
        shared = check_netns_mounts(inside)
        subprocess.run(["mount", "--make-private", tmp_path / "var/run"], check=True)
    assert nothing
    assert private
    assert shared
    assert not nothing.ok
    assert not private.ok
    assert "HostToContainer" in private.remedy
    assert shared.ok, shared.detail


def test_directories_are_written_to(tmp_path: Path) -> None:
    """Read-only, missing and impossible directories are told apart by writing."""
    (tmp_path / "file").touch()
    with tmpfs(tmp_path / "fixed", "-o", "ro"):
        zds, agent, net, programs = check_directories(
            settings(
                ztunnel_uds_address=f"{tmp_path}/fixed/z.sock",
                cni_agent_run_dir=f"{tmp_path}/new/run",
                cni_net_dir=f"{tmp_path}/file/net.d",
                cni_bin_dir=str(tmp_path),
            )
        )
    assert (zds.ok, zds.detail) == (False, f"{tmp_path}/fixed: Read-only file system")
    assert (agent.ok, agent.detail) == (True, f"{tmp_path}/new/run: not there yet, and can be made")
    assert (net.ok, net.detail) == (False, f"{tmp_path}/file: Not a directory")
    assert (programs.ok, programs.detail) == (True, str(tmp_path))
    assert f"may use {tmp_path}/file/net.d" in net.remedy
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "fixed"]


def test_socket_of_ztunnel_has_an_owner_or_none(tmp_path: Path) -> None:
    """Who listens already is named; a file in the socket's place is a fault."""
    path = tmp_path / "z.sock"
    where = settings(ztunnel_uds_address=str(path))
    assert "nobody listens" in check_zds_socket(where).detail
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(path))
        listener.listen()
        assert f"process {os.getpid()} of user 0 listens" in check_zds_socket(where).detail
    assert "left by an agent" in check_zds_socket(where).detail
    path.unlink()
    path.touch()
    assert check_zds_socket(where).remedy == f"remove {path}"


async def test_agent_on_a_folder_needs_no_cluster(tmp_path: Path) -> None:
    """With manifests in a folder nothing is asked of a runtime or an API server."""
    checks = await run_checks(
        settings(
            pod_manifests=str(tmp_path),
            cni_agent_run_dir=str(tmp_path / "run"),
            ztunnel_uds_address=str(tmp_path / "z.sock"),
        )
    )
    assert [check for check in checks if not check.ok] == []
    assert not {"container runtime", "Kubernetes API"} & {check.name for check in checks}


async def test_without_a_cluster_the_setting_is_named(tmp_path: Path) -> None:
    """Neither a pod's credential nor a kubeconfig: one line that says how to give one."""
    checks = await run_checks(
        settings(
            kubeconfig=str(tmp_path / "none"),
            cni_agent_run_dir=str(tmp_path / "run"),
            ztunnel_uds_address=str(tmp_path / "z.sock"),
        )
    )
    failed = {check.name: check for check in checks if not check.ok}
    assert "KUBECONFIG" in failed["Kubernetes API"].remedy


async def test_runtime_without_a_socket_is_told(tmp_path: Path) -> None:
    """A socket that is not there, or at which nobody answers, is named with its setting."""
    path = tmp_path / "cri.sock"
    absent = await check_runtime(settings(container_runtime_endpoint=f"unix://{path}"))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
    refused = await check_runtime(settings(container_runtime_endpoint=str(path)))
    assert not absent.ok
    assert "CONTAINER_RUNTIME_ENDPOINT" in absent.remedy
    assert not refused.ok
    assert str(path) in refused.detail
