"""The container of Istio's DaemonSet, made by hand: what its process sees and may do.

Run as a program it becomes that process: in a mount and a PID namespace of its own, in a root
with the image's programs and the chart's mounts alone, with the chart's capabilities.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from nodeagent.linux import syscalls as kernel
from tests.capabilities import Grant, limit_to

_HIDDEN = {"host", "run", "var", "proc", "tmp", "media", "mnt", "lost+found"}
"""Of this machine's root: the image has nothing of it, or something of its own."""
SECRETS = "/var/run/secrets/kubernetes.io/serviceaccount"
_CLONE_NEWPID = 0x20000000


def command(
    *,
    netns: str,
    mounts: dict[str, str],
    environ: dict[str, str],
    arguments: list[str],
    capabilities: tuple[str, ...],
) -> list[str]:
    """The command that runs the container; PID 1 below it is the host's, in this netns."""
    spec = {
        "netns": netns,
        "mounts": mounts,
        "environ": environ,
        "arguments": arguments,
        "capabilities": capabilities,
    }
    apart = ("--mount", "--propagation", "slave", "--pid", "--fork", "--kill-child", "--mount-proc")
    return ["unshare", *apart, sys.executable, "-m", "tests.deploy.chart_pod", json.dumps(spec)]


def _main(text: str) -> None:
    spec = json.loads(text)
    if spec["netns"]:
        netns = os.open(spec["netns"], os.O_RDONLY)
        kernel.setns(netns, kernel.CLONE_NEWNET)
        os.close(netns)
    kernel.unshare(_CLONE_NEWPID)
    if child := os.fork():
        _pass_on_signals(child)
    root = _root(spec["mounts"])
    os.chroot(root)
    os.chdir(Path(__file__).parents[2])
    os.environ.clear()
    os.environ.update(spec["environ"])
    limit_to(Grant(frozenset(spec["capabilities"]), None), "/tmp")
    program = "import sys; from nodeagent.cli import install_cni; sys.exit(install_cni())"
    os.execv(sys.executable, [sys.executable, "-c", program, *spec["arguments"]])


def _pass_on_signals(child: int) -> None:
    """Be the host's PID 1 in the way: end as the container does."""
    import signal  # noqa: PLC0415 - only here

    signal.signal(signal.SIGTERM, lambda number, _: os.kill(child, number))
    _, status = os.waitpid(child, 0)
    os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


def _root(mounts: dict[str, str]) -> str:
    root = tempfile.mkdtemp()
    _mount("-t", "tmpfs", "root", root)
    for entry in os.scandir("/"):
        if entry.name in _HIDDEN:
            continue
        if entry.is_symlink():
            os.symlink(os.readlink(entry.path), f"{root}/{entry.name}")
        elif entry.is_dir():
            os.mkdir(f"{root}/{entry.name}")
            _mount("--rbind", entry.path, f"{root}/{entry.name}")
    for made in ("run", "tmp", "var", "proc", "host"):
        os.mkdir(f"{root}/{made}")
    os.symlink("/run", f"{root}/var/run")
    _mount("-t", "proc", "proc", f"{root}/proc")
    for inside, outside in mounts.items():
        # `/var/run` is an absolute link, as in the image: it would lead out of this root.
        point = root + inside.removeprefix("/var" if inside.startswith("/var/run/") else "")
        os.makedirs(point)
        _mount("--rbind", outside, point)
    return root


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


if __name__ == "__main__":
    _main(sys.argv[1])
