"""What `deploy` grants the agent, and processes that have exactly that (L43)."""

import ctypes
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

_DEPLOY = Path(__file__).parents[1] / "deploy"
# linux/capability.h
_BITS = {
    "DAC_OVERRIDE": 1,
    "DAC_READ_SEARCH": 2,
    "SETPCAP": 8,
    "NET_ADMIN": 12,
    "NET_RAW": 13,
    "SYS_PTRACE": 19,
    "SYS_ADMIN": 21,
}
_VERSION_3 = 0x20080522
_PR_CAPBSET_DROP = 24  # linux/prctl.h

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Grant:
    """What a process of the agent's may do."""

    capabilities: frozenset[str]
    """Names without ``CAP_``."""
    lock_file: str | None
    """The path that `XTABLES_LOCKFILE` names in the container; None: it is not set."""

    def without(self, *capabilities: str) -> "Grant":
        """The same with some capabilities less, which must be granted."""
        assert self.capabilities.issuperset(capabilities), "it is not granted at all"
        return Grant(self.capabilities.difference(capabilities), self.lock_file)


def granted(*components: str) -> Grant:
    """What ``deploy/base`` grants, with these of ``deploy/components``."""
    containers = [_container(yaml.safe_load((_DEPLOY / "base/daemonset.yaml").read_text()))]
    for component in components:
        path = _DEPLOY / "components" / component / "kustomization.yaml"
        patches = yaml.safe_load(path.read_text()).get("patches", ())
        containers += [_container(yaml.safe_load(each["patch"])) for each in patches]
    environment = {one["name"]: one.get("value") for each in containers for one in each["env"]}
    added = (each.get("securityContext", {}).get("capabilities", {}) for each in containers)
    return Grant(
        frozenset(name for each in added for name in each.get("add", ())),
        environment.get("XTABLES_LOCKFILE"),
    )


def limit_to(grant: Grant, directory: str) -> None:
    """Give up for good whatever `grant` does not have, in this process and its children.

    A lock file's place is `directory` then. For a process that has one thread.
    """
    kept = sum(1 << _BITS[name] for name in grant.capabilities)
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    for bit in range(last + 1):
        if not kept >> bit & 1:
            _check(_libc.prctl(_PR_CAPBSET_DROP, bit, 0, 0, 0))
    low, high = kept & 0xFFFFFFFF, kept >> 32
    header = struct.pack("=Ii", _VERSION_3, 0)
    _check(_libc.capset(header, struct.pack("=6I", low, low, 0, high, high, 0)))
    os.environ.pop("XTABLES_LOCKFILE", None)
    if grant.lock_file is not None:
        os.environ["XTABLES_LOCKFILE"] = str(Path(directory) / Path(grant.lock_file).name)


def _container(manifest: Any) -> dict[str, Any]:
    [container] = manifest["spec"]["template"]["spec"]["containers"]
    return {"env": [], **container}


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
