"""The command line as a process: what it prints, and its exit status."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nodeagent.admin.server import serve_admin
from nodeagent.config import SETTINGS
from tests.eventually import PATIENCE


def nodeagent(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "nodeagent", *arguments],
        env={"PATH": os.environ["PATH"], **environ},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )


def test_help_shows_every_setting_with_its_names_and_default() -> None:
    """A reader of `nodeagent run --help` needs no other list of settings."""
    run = nodeagent("run", "--help")
    assert run.returncode == 0
    for setting in SETTINGS:
        assert f"{setting.flag} {setting.metavar}\n" in run.stdout
        assert f"{setting.variable}, default: {setting.default}\n" in run.stdout
    assert "run the agent" in nodeagent("--help").stdout
    assert nodeagent("--version").stdout.startswith("nodeagent ")


@pytest.mark.parametrize("arguments", [["--log-level", "loud"], ["--log-level="]])
def test_a_wrong_setting_stops_the_start_with_one_line(arguments: list[str]) -> None:
    """One line, exit status 2, and nothing was started; an empty flag is wrong, not absent."""
    run = nodeagent("run", *arguments, LOG_LEVEL="debug")
    assert run.returncode == 2
    assert run.stderr.count("\n") == 1
    assert run.stderr.startswith("nodeagent: LOG_LEVEL (--log-level) is ")
    assert not run.stdout


def test_an_agent_without_pods_to_watch_does_not_start() -> None:
    """L4: without a source of pods there is nothing to be ready for; the remedy is named."""
    run = nodeagent("run")
    assert run.returncode == 1
    assert run.stderr.startswith("nodeagent: no API server: ")
    assert "KUBECONFIG" in run.stderr
    assert "POD_MANIFESTS" in run.stderr
    assert run.stderr.count("\n") == 1


def test_an_agent_that_cannot_listen_says_so_in_one_line(tmp_path: Path) -> None:
    """L22: a socket that cannot be made is named with its setting."""
    (tmp_path / "file").touch()
    places = {"POD_MANIFESTS": str(tmp_path), "CNI_AGENT_RUN_DIR": str(tmp_path)}
    run = nodeagent("run", **places, ZTUNNEL_UDS_ADDRESS=f"{tmp_path}/file/z.sock")
    assert run.returncode == 1
    last = run.stderr.splitlines()[-1]
    assert last.startswith("nodeagent: ")
    assert f"cannot listen at {tmp_path}/file/z.sock (ZTUNNEL_UDS_ADDRESS)" in last
    assert "Traceback" not in run.stderr


async def test_the_agent_runs_until_sigterm(tmp_path: Path) -> None:
    """L17: SIGTERM ends the agent in order, with exit status 0, and its sockets go."""
    agent = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "nodeagent", "run"),
        *("--pod-manifests", str(tmp_path), "--cni-agent-run-dir", str(tmp_path)),
        *("--ztunnel-uds-address", f"{tmp_path}/ztunnel.sock"),
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        assert agent.stderr is not None
        async with asyncio.timeout(PATIENCE):
            while json.loads(await agent.stderr.readline())["event"] != "ready":
                pass
            status = await asyncio.to_thread(
                nodeagent, "status", "--json", "--cni-agent-run-dir", str(tmp_path)
            )
            agent.terminate()
            assert await agent.wait() == 0
    except BaseException:
        agent.kill()
        raise
    assert json.loads(status.stdout) == []
    assert not os.listdir(tmp_path)


async def test_status_asks_the_running_agent(tmp_path: Path) -> None:
    """`nodeagent status` prints a table, or all as JSON; without an agent it fails in one line."""
    workload: dict[str, object] = {
        "namespace": "shop",
        "name": "web",
        "uid": "u1",
        "state": "enrolled",
        "reason": "pod matches a=b",
        "detail": "",
        "since": 0.0,
        "verified": 0.0,
    }
    directory = str(tmp_path)
    async with serve_admin(f"{directory}/admin.sock", workloads=lambda: [workload], missing=list):
        text = await asyncio.to_thread(nodeagent, "status", CNI_AGENT_RUN_DIR=directory)
        as_json = await asyncio.to_thread(
            nodeagent, "status", "--json", "--cni-agent-run-dir", directory
        )
    assert text.stdout.splitlines()[1].startswith("shop/web  u1   yes        enrolled")
    assert json.loads(as_json.stdout) == [workload]
    without = nodeagent("status", "--cni-agent-run-dir", directory)
    assert (without.returncode, without.stdout, without.stderr.count("\n")) == (1, "", 1)


def nft_accepts(text: str) -> bool:
    check = subprocess.run(
        ["nft", "-c", "-f", "-"], input=text, text=True, check=False, timeout=PATIENCE
    )
    return check.returncode == 0


def test_rules_are_text_that_nft_takes(tmp_path: Path) -> None:
    """`nodeagent rules` prints what a pod would get, with what its annotations ask for."""
    pod = {
        "kind": "Pod",
        "metadata": {
            "name": "web",
            "namespace": "shop",
            "annotations": {
                "ambient.istio.io/dns-capture": "false",
                "ambient.istio.io/bypass-inbound-capture": "sure\n}",
            },
        },
    }
    (tmp_path / "web.json").write_text(json.dumps(pod))
    default = nodeagent("rules")
    own = nodeagent("rules", "--pod-manifests", str(tmp_path), "--pod", "shop/web")
    assert nft_accepts(default.stdout)
    assert nft_accepts(own.stdout)
    assert "15053" in default.stdout
    assert "15053" not in own.stdout
    assert "15006" in own.stdout
    assert "# pod shop/web: annotation ambient.istio.io/bypass-inbound-capture" in own.stdout
    assert "15053" not in nodeagent("rules", "--ambient-dns-capture=false").stdout


def test_rules_of_an_unknown_pod_are_an_error(tmp_path: Path) -> None:
    """A pod that no manifest has is named, and so is a folder that is not there."""
    unknown = nodeagent("rules", "--pod-manifests", str(tmp_path), "--pod", "shop/web")
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert unknown.stderr == f"nodeagent: there is no pod shop/web in {tmp_path}\n"
    missing = nodeagent("rules", "--pod-manifests", f"{tmp_path}/none", "--pod", "shop/web")
    assert (missing.returncode, missing.stderr.count("\n")) == (1, 1)
