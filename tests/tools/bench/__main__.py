"""``python -m tests.tools.bench [--quick] [PART …]``: prints the table, from own namespaces."""

import argparse
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NoReturn

from nodeagent.linux.fd_limit import raise_nofile_limit
from tests.runtime import containerd
from tests.tools.bench import (
    backends,
    cluster,
    cni,
    drift,
    enrollment,
    growth,
    host_set,
    hostile,
    in_pod,
    joining,
)
from tests.tools.bench.node import Node
from tests.tools.bench.report import Figure, machine, table

_INSIDE = "NODEAGENT_TEST_SANDBOX"  # set by tests/sandbox.py, too
_USER = ("--user", "--map-root-user")
# As root there is more to measure, and nothing that was started outlives the run.
_ROOT = ("--pid", "--fork", "--kill-child", "--mount-proc")
_OTHERS = ("--net", "--mount")

_FULL = enrollment.Counts(
    present=(1, 50, 250), samples=200, crowds=(50, 250, 1000), snapshots=(250, 1000), repeats=3
)
_QUICK = enrollment.Counts(present=(1, 3), samples=5, crowds=(3, 6), snapshots=(6,), repeats=1)
_EXPECTED_DESCRIPTORS = 16_384
_DRIFT_FULL = drift.Counts(present=250, samples=60, seconds=10)
_DRIFT_QUICK = drift.Counts(present=14, samples=3, seconds=0.2)
_CLUSTER_FULL = cluster.Counts(
    pods=250, namespaces=(2000, 5000), singles=40, sandboxes=20, repeats=3, interval=10
)
_CLUSTER_QUICK = cluster.Counts(
    pods=3, namespaces=(5, 9), singles=2, sandboxes=1, repeats=1, interval=1
)
_HOSTILE_FULL = hostile.Counts(samples=100, flooding=6, annotated=10)
_HOSTILE_QUICK = hostile.Counts(samples=3, flooding=1, annotated=2)
_CNI_FULL = cni.Counts(samples=200, crowd=100, repeats=3)
_CNI_QUICK = cni.Counts(samples=3, crowd=4, repeats=1)


# Each by its name: with what is measured of it in full, and to see that it works.
_PARTS: Mapping[str, Callable[[Node, bool], Iterable[Figure]]] = {
    "in-pod": lambda node, quick: in_pod.figures(node, 3 if quick else 60),
    "enrollment": lambda node, quick: enrollment.figures(node, _QUICK if quick else _FULL),
    "drift": lambda node, quick: drift.figures(node, _DRIFT_QUICK if quick else _DRIFT_FULL),
    "host-set": lambda _, quick: host_set.figures(20 if quick else 1000),
    "backends": lambda node, quick: backends.figures(
        node, in_pod.default_spec(), 2 if quick else 30
    ),
    "joining": lambda _, quick: joining.figures(0.1 if quick else 1.5),
    "growth": lambda node, quick: growth.figures(
        node, crowd=4 if quick else 250, marks=(8, 16) if quick else (1000, 5000, 10000)
    ),
    "hostile": lambda node, quick: hostile.figures(
        node, _HOSTILE_QUICK if quick else _HOSTILE_FULL
    ),
    "cluster": lambda node, quick: cluster.figures(
        node, _CLUSTER_QUICK if quick else _CLUSTER_FULL
    ),
    "cni": lambda node, quick: cni.figures(node, _CNI_QUICK if quick else _CNI_FULL),
}


def main() -> int:
    """Measure and print; a missed aim is a line of the table, not a failure."""
    parser = argparse.ArgumentParser(prog="python -m tests.tools.bench", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="a few seconds, to see that it works: no figures"
    )
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(_PARTS)}; none: all")
    arguments = parser.parse_args()
    parts = arguments.parts or list(_PARTS)
    if unknown := set(parts) - _PARTS.keys():
        parser.error(f"no such part: {unknown.pop()}")
    # Where Debian keeps ip and nft, out of an ordinary user's way.
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    if _INSIDE not in os.environ:
        _enter()
    raise_nofile_limit(_EXPECTED_DESCRIPTORS)
    where = machine()
    with Node() as node:
        lines = list(_figures(node, parts, quick=arguments.quick))
    print(f"{where}\n\n{table(lines)}")
    if "cluster" in parts:
        for reason in filter(None, (cluster.missing(), containerd.missing())):
            print(f"\nSome figures of the cluster are left out: {reason}")
    return 0


def _figures(node: Node, parts: Iterable[str], *, quick: bool) -> Iterator[Figure]:
    started = time.monotonic()
    for part in parts:
        for figure in _PARTS[part](node, quick):
            print(f"{time.monotonic() - started:5.0f} s  {figure.what}", file=sys.stderr)
            yield figure


def _enter() -> NoReturn:
    missing = [name for name in ("ip", "nft", "iptables-restore") if not shutil.which(name)]
    if missing:
        sys.exit(f"tests.tools.bench: programs to compare with are missing: {', '.join(missing)}")
    os.environ[_INSIDE] = "1"
    user = _ROOT if os.geteuid() == 0 else _USER
    program = ["unshare", *user, *_OTHERS, sys.executable, "-m", "tests.tools.bench", *sys.argv[1:]]
    os.execvp(program[0], program)


if __name__ == "__main__":
    sys.exit(main())
