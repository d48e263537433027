"""``python -m tests.bench [--quick]``: prints the table, from within namespaces of its own."""

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import NoReturn

from nodeagent.descriptors import make_room
from tests.bench import backends, drift, enrolment, growth, host_set, in_pod, joining
from tests.bench.node import Node
from tests.bench.report import Figure, machine, table

_INSIDE = "NODEAGENT_TEST_SANDBOX"  # set by tests/sandbox.py, too
_USER = ("--user", "--map-root-user")
_OTHERS = ("--net", "--mount")

_FULL = enrolment.Counts(
    present=(1, 50, 250), samples=200, crowds=(50, 250, 1000), snapshots=(250, 1000), repeats=3
)
_QUICK = enrolment.Counts(present=(1, 3), samples=5, crowds=(3, 6), snapshots=(6,), repeats=1)
_EXPECTED_DESCRIPTORS = 16_384
_DRIFT_FULL = drift.Counts(present=250, samples=60, seconds=10)
_DRIFT_QUICK = drift.Counts(present=14, samples=3, seconds=0.2)


def main() -> int:
    """Measure and print; a missed aim is a line of the table, not a failure."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="a few seconds, to see that it works: no figures"
    )
    quick: bool = parser.parse_args().quick
    # Where Debian keeps ip and nft, out of an ordinary user's way.
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    if _INSIDE not in os.environ:
        _enter()
    make_room(_EXPECTED_DESCRIPTORS)
    where = machine()
    with Node() as node:
        lines = list(_figures(node, quick=quick))
    print(f"{where}\n\n{table(lines)}")
    return 0


def _figures(node: Node, *, quick: bool) -> Iterator[Figure]:
    started = time.monotonic()
    for part in (
        iter(in_pod.figures(node, 3 if quick else 60)),
        enrolment.figures(node, _QUICK if quick else _FULL),
        drift.figures(node, _DRIFT_QUICK if quick else _DRIFT_FULL),
        iter(host_set.figures(20 if quick else 1000)),
        iter(backends.figures(node, in_pod.default_spec(), 2 if quick else 30)),
        iter(joining.figures(0.1 if quick else 1.5)),
        growth.figures(
            node, crowd=4 if quick else 250, marks=(8, 16) if quick else (1000, 5000, 10000)
        ),
    ):
        for figure in part:
            print(f"{time.monotonic() - started:5.0f} s  {figure.what}", file=sys.stderr)
            yield figure


def _enter() -> NoReturn:
    missing = [name for name in ("ip", "nft", "iptables-restore") if not shutil.which(name)]
    if missing:
        sys.exit(f"tests.bench: programs to compare with are missing: {', '.join(missing)}")
    os.environ[_INSIDE] = "1"
    # Root can do without a user namespace where the machine allows none.
    allowed = subprocess.run(["unshare", *_USER, "true"], check=False).returncode == 0
    user = () if os.geteuid() == 0 and not allowed else _USER
    program = ["unshare", *user, *_OTHERS, sys.executable, "-m", "tests.bench", *sys.argv[1:]]
    os.execvp(program[0], program)


if __name__ == "__main__":
    sys.exit(main())
