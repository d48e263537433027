"""Checks of what the kernel lets this process do: capabilities, rules, SELinux."""

import contextlib
import os
import tempfile

from nodeagent.commands.check.check import Check, bad, good
from nodeagent.config import Settings
from nodeagent.netfilter.errors import RulesError
from nodeagent.netfilter.iptables_programs import Variant
from nodeagent.netfilter.iptables_variant import host_uses_legacy
from nodeagent.netfilter.scratch import in_scratch_netns
from nodeagent.redirect.backend import Backends
from nodeagent.redirect.defaults import NO_POD, RedirectDefaults

# linux/capability.h
_NET_ADMIN = {"NET_ADMIN": 12}
_NET_RAW = {"NET_RAW": 13}
_SYS_ADMIN = {"SYS_ADMIN": 21}
_SYS_PTRACE = {"SYS_PTRACE": 19}
_DAC_OVERRIDE = {"DAC_OVERRIDE": 1}
_DAC_READ_SEARCH = {"DAC_READ_SEARCH": 2}
_LOCK = "/run/xtables.lock"
"""The lock of iptables-legacy, unless XTABLES_LOCKFILE names another; see iptables(8)."""
LEGACY_TABLES = "/proc/self/net/ip_tables_names"
"""Exists on kernels in which there can be tables of iptables-legacy."""
_CONFINED_TYPES = ("container_t", "container_init_t", "svirt_lxc_net_t")
"""SELinux types of containers, none of which may use the host's sockets."""


def check_capabilities(
    settings: Settings, status: str = "/proc/self/status", tables: str = LEGACY_TABLES
) -> Check:
    """The process has the capabilities that the settings and possible leftovers need."""
    needed = _NET_ADMIN | _SYS_ADMIN
    legacy = os.path.exists(tables)
    if settings.pod_manifests is None:
        needed |= _SYS_PTRACE  # to open /proc/PID/ns/net of other users' processes
    if legacy or not settings.native_nftables:
        needed |= _NET_RAW  # iptables-legacy talks through a raw socket
    effective = _effective(status)
    if legacy and settings.pod_manifests is None and not _has(effective, _DAC_OVERRIDE):
        needed |= _DAC_READ_SEARCH  # for /proc/net of a pod with ``hostUsers: false``
    lacking = [name for name, bit in needed.items() if not effective >> bit & 1]
    if not lacking:
        return good("capabilities", ", ".join(needed))
    reason = "; NET_RAW is for tables of iptables-legacy, which any pod may have"
    return bad(
        "capabilities",
        f"{', '.join(lacking)} missing{reason if lacking == [*_NET_RAW] else ''}",
        "run the agent as root; in a container, runAsUser: 0 and "
        f"securityContext.capabilities.add: [{', '.join(needed)}]",
    )


def check_legacy_lock(settings: Settings, tables: str = LEGACY_TABLES) -> Check | None:
    """The lock of iptables-legacy can be taken; None where there can be no such tables."""
    if settings.native_nftables and not os.path.exists(tables):
        return None
    name, path = "iptables lock", os.environ.get("XTABLES_LOCKFILE", _LOCK)
    try:
        # A lock file that this check made could not be deleted again: somebody may hold it.
        if os.path.exists(path):
            os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        else:
            tempfile.NamedTemporaryFile(dir=os.path.dirname(path)).close()
    except OSError as error:
        return bad(
            name,
            f"{path}: {error.strerror}",
            f"XTABLES_LOCKFILE={settings.cni_agent_run_dir}/xtables.lock; a root file system"
            " may stay read-only",
        )
    return good(name, path)


def check_rules(settings: Settings) -> Check:
    """A pod's rules can be installed and read back, in a netns that is made for the check."""
    spec, _ = RedirectDefaults.from_settings(settings).of(NO_POD)

    def attempt() -> str:
        try:
            backend = Backends.choose(_variant(settings)).chosen
            backend.ensure(spec)
            return "; ".join(backend.inspect(spec))
        except RulesError as error:
            return str(error)

    name = "nftables" if settings.native_nftables else "iptables"
    try:
        fault = in_scratch_netns(attempt)
    except RulesError as error:
        remedy = "the capability SYS_ADMIN; on the host: sysctl user.max_net_namespaces"
        return bad(name, str(error), remedy)
    if fault:
        return bad(name, fault, _rules_remedy(settings))
    return good(name, "a pod's rules were written and read back")


def check_selinux(
    attributes: str = "/proc/self/attr/current", policy: str = "/sys/fs/selinux"
) -> Check:
    """The process is not confined by SELinux, which shows as "permission denied" only (L22)."""
    context = _read(attributes).rstrip("\0\n").split(":")
    # Only SELinux's own labels have user, role, type and level.
    if len(context) < 4:
        return good("SELinux", "not in use")
    kind = context[2]
    if _read(os.path.join(policy, "enforce")).strip() == "0":
        return good("SELinux", f"permissive, as {kind}")
    if kind in _CONFINED_TYPES:
        return bad(
            "SELinux",
            f"enforcing, and {kind} may not use the host's sockets and directories",
            "securityContext.seLinuxOptions: {type: spc_t} for the agent's container",
        )
    return good("SELinux", f"enforcing, as {kind}")


def _has(effective: int, capability: dict[str, int]) -> bool:
    return all(effective >> bit & 1 for bit in capability.values())


def _effective(status: str) -> int:
    for line in _read(status).splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0


def _variant(settings: Settings) -> Variant | None:
    if settings.native_nftables:
        return None
    if settings.force_iptables_binary:
        return Variant(settings.force_iptables_binary)
    # A check remembers nothing: the agent itself finds out in the host's namespace.
    return Variant.LEGACY if host_uses_legacy() else Variant.NFT


def _rules_remedy(settings: Settings) -> str:
    if settings.native_nftables:
        return (
            "on the host: modprobe -a nf_tables nft_chain_nat nft_redir nft_ct; for a kernel "
            "without them, NATIVE_NFTABLES=false"
        )
    return (
        "on the host: modprobe -a iptable_nat iptable_mangle iptable_raw ip6table_nat "
        "ip6table_mangle ip6table_raw; or NATIVE_NFTABLES=true"
    )


def _read(path: str) -> str:
    with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="replace") as file:
        return file.read(65536)
    return ""
