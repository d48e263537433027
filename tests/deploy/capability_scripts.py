"""Scripts that do a part of the agent's work with some capabilities only."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

LEGACY = "XTABLES_LOCKFILE=/dev/null iptables-legacy -t nat -S >/dev/null"
"""In a pod: have a look at its iptables-legacy tables, which makes them."""
LOOK = """
import os
import sys

namespace = os.open(f"/proc/{sys.argv[1]}/ns/net", os.O_RDONLY)
from nodeagent.linux import syscalls
syscalls.setns(namespace, syscalls.CLONE_NEWNET)
open("/proc/thread-self/net/ip_tables_names").read()
from nodeagent.netfilter.iptables_programs import Variant, save
from nodeagent.netfilter.rule import Family
assert "*nat" in save(Variant.LEGACY, Family.V4)
"""
"""Look for the legacy tables of a pod."""
INSTALL = """
import sys
from nodeagent.cni.install import confdir

list = sys.argv[1] + "/10-x.conflist"
confdir.replace(list, b"{ }", like=list)
"""
"""Write to a directory of another user, in the place of a file of that user's."""


@contextlib.contextmanager
def process(*command: str) -> Iterator[str]:
    """The id of a process that has written a line, and lives until the end of the ``with``."""
    with subprocess.Popen(command, stdout=subprocess.PIPE) as started:
        assert started.stdout
        assert started.stdout.readline(), f"it failed: {command}"
        try:
            yield str(started.pid)
        finally:
            started.kill()


def in_a_netns(script: str) -> list[str]:
    return ["unshare", "--net", "sh", "-c", f"{script} && echo && exec sleep 60"]


def attempt(
    script: str, subject: str, capabilities: Sequence[str], lock: Path
) -> subprocess.CompletedProcess[str]:
    """Run a script about `subject` with these capabilities and no others."""
    bounding = ",".join(["-all", *(f"+{each.lower()}" for each in capabilities)])
    return subprocess.run(
        [
            *("setpriv", f"--bounding-set={bounding}", "--inh-caps=-all", "--"),
            *(sys.executable, "-c", script, subject),
        ],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "XTABLES_LOCKFILE": str(lock)},
    )


def failed_line(script: str, traceback: str) -> str:
    """The line of the script that failed, which Python names by its number only."""
    number = int(traceback.split('File "<string>", line ')[1].split(",", maxsplit=1)[0])
    return script.splitlines()[number - 1]
