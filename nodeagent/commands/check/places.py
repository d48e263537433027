"""Checks of the host's files, directories and sockets, as this process sees them."""

import contextlib
import os
import socket
import stat
import struct
import tempfile
from collections.abc import Iterator

from nodeagent.cni.install.confdir import whose
from nodeagent.commands.check.check import Check, bad, good
from nodeagent.config import Settings
from nodeagent.linux.links import follow
from nodeagent.netns.netns import Netns
from nodeagent.netns.threads import NetnsThreads

_PEER = struct.Struct("3i")  # struct ucred, see unix(7)


async def check_host_netns(settings: Settings) -> Check:
    """The host's netns, from which health probes come, can be entered."""
    name = "host namespace"
    path = settings.host_netns or (
        f"{settings.host_prefix}/proc/1/ns/net" if settings.host_prefix else "/proc/self/ns/net"
    )
    try:
        netns = Netns.open(path)
    except PermissionError as error:
        return bad(
            name,
            f"{path}: {error.strerror}",
            "the capability SYS_PTRACE, and appArmorProfile: {type: Unconfined} where nodes "
            "have AppArmor",
        )
    except OSError as error:
        return bad(
            name, f"{path}: {error.strerror or error}", _mount(settings.on_host("/proc"), settings)
        )
    with netns, contextlib.closing(NetnsThreads(1)) as threads:
        try:
            await threads.run(netns, lambda: None)
        except OSError as error:
            return bad(
                name,
                f"{path}: cannot be entered: {error.strerror}",
                "the capability SYS_ADMIN, and a seccomp profile that permits setns "
                "(RuntimeDefault does)",
            )
        return good(name, f"{netns.id}, by {path}")


def check_procfs(settings: Settings) -> Check:
    """The processes of the host can be seen, not only those of a container."""
    name, path = "procfs", f"{settings.host_prefix}/proc"
    try:
        processes = sum(entry.isdigit() for entry in os.listdir(path))
        with open(f"{path}/1/cgroup", encoding="utf-8", errors="replace") as file:
            file.read(1)
    except OSError as error:
        return bad(name, f"{path}: {error.strerror}", _mount(settings.on_host("/proc"), settings))
    return good(name, f"{processes} processes in {path}")


def check_netns_mounts(settings: Settings, mountinfo: str = "/proc/self/mountinfo") -> Check | None:
    """A netns that a runtime mounts later can be seen; None on a bare host."""
    if not settings.host_prefix:
        return None
    name, path = "netns mounts", settings.on_host("/var/run/netns")
    mount = _covering(path, mountinfo)
    remedy = "mount the host's /run there with mountPropagation: HostToContainer"
    if mount is None:
        return bad(name, f"{path} is not the host's", remedy)
    point, propagated = mount
    if not propagated:
        return bad(name, f"{point} does not follow the host's mounts", remedy)
    return good(name, f"{point} follows the host's mounts")


def check_directories(settings: Settings) -> list[Check]:
    """The directories that the agent writes to."""
    wanted = [("ZDS directory", os.path.dirname(settings.ztunnel_uds_address))]
    wanted.append(("agent directory", settings.cni_agent_run_dir))
    if settings.cni_net_dir is not None:
        wanted.append(("CNI configuration", settings.on_host(settings.cni_net_dir)))
        wanted.append(("CNI programs", settings.on_host(settings.cni_bin_dir)))
    return [_check_directory(name, path, settings) for name, path in wanted]


def check_zds_socket(settings: Settings) -> Check:
    """The socket for ztunnel can be used; says who listens there now, if anybody."""
    name, path = "ZDS socket", settings.ztunnel_uds_address
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return bad(name, f"{path} is not a socket", f"remove {path}")
    except FileNotFoundError:
        return good(name, f"{path}: nobody listens yet")
    except OSError as error:
        return bad(name, f"{path}: {error.strerror}", _mount(os.path.dirname(path), settings))
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        try:
            client.connect(path)
        except ConnectionRefusedError:
            return good(name, f"{path}: left by an agent that has ended; replaced at the start")
        except OSError as error:
            return bad(
                name,
                f"{path}: {error.strerror}",
                "see who made it; on SELinux nodes, seLinuxOptions: {type: spc_t}",
            )
        peer = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
    pid, user, _ = _PEER.unpack(peer)
    who = f"process {pid}" if pid else "a process that is not seen from here"
    return good(name, f"{path}: {who} of user {user} listens")


def _check_directory(name: str, path: str, settings: Settings) -> Check:
    path = follow(path, settings.host_prefix or "/").path
    # The agent makes a directory that is not there yet, so its parent counts.
    place = next(parent for parent in _upwards(path) if os.path.lexists(parent))
    try:
        # A file is written, because modes tell nothing of read-only mounts, SELinux and full disks.
        with tempfile.NamedTemporaryFile(dir=place, prefix=".nodeagent-check-") as file:
            file.write(b"x")
            file.flush()
    except OSError as error:
        if isinstance(error, PermissionError) and (owner := whose(place)):
            remedy = "securityContext.capabilities.add: [DAC_OVERRIDE], as deploy/base has it"
            return bad(name, f"{place}: {error.strerror}{owner}", remedy)
        return bad(name, f"{place}: {error.strerror}", _mount(path, settings))
    return good(name, path if place == path else f"{path}: not there yet, and can be made")


def _upwards(path: str) -> Iterator[str]:
    while True:
        yield path
        if path == (path := os.path.dirname(path)):
            return


def _covering(path: str, mountinfo: str) -> tuple[str, bool] | None:
    """The mount that `path` is on, if it is not the root, and whether host mounts come into it."""
    best: tuple[str, bool] | None = None
    with open(mountinfo, encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            fields = line.split(" ")
            point = fields[4]
            inside = path == point or path.startswith(point.rstrip("/") + "/")
            if inside and point != "/" and (best is None or len(point) >= len(best[0])):
                optional = fields[6 : fields.index("-")]
                follows = any(tag.startswith(("master:", "shared:")) for tag in optional)
                best = (point, follows)
    return best


def _mount(path: str, settings: Settings) -> str:
    if settings.host_prefix:
        host = path.removeprefix(settings.host_prefix)
        return f"mount the host's {host} at {path} (hostPath; deploy/base/daemonset.yaml has it)"
    return f"make sure that the agent's user may use {path}"
