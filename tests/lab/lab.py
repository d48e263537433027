"""A bridge in the current network namespace, and the pods that hang on it."""

import ctypes
import itertools
import os
import subprocess
import tempfile
import time
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from types import TracebackType
from typing import Self

from nodeagent.linux import syscalls as kernel
from tests.eventually import PATIENCE
from tests.lab.pod import Pod, call_in_thread

_MS_BIND = 0x1000
_MNT_DETACH = 2
_BRIDGE = "lab0"
_GATEWAY_V4 = IPv4Interface("10.88.0.1/16")
_GATEWAY_V6 = IPv6Interface("fd88::1/64")

# The cables of an earlier lab go when the kernel comes to it.
_link_numbers = itertools.count()
_libc = ctypes.CDLL(None, use_errno=True)


class Lab:
    """Makes pods until the end of its ``with`` block; then all of them go.

    Works where the caller may make namespaces and mounts: inside
    ``unshare --user --map-root-user --net --mount``, or as root.
    """

    gateway_v4 = _GATEWAY_V4.ip
    gateway_v6 = _GATEWAY_V6.ip

    def __init__(self) -> None:
        self.pods: dict[str, Pod] = {}
        self._count = 0
        self._directory = tempfile.TemporaryDirectory(prefix="lab-")

    def __enter__(self) -> Self:
        try:
            ip_batch(
                "link set lo up",
                f"link add {_BRIDGE} type bridge forward_delay 0 mcast_snooping 0",
                f"link set {_BRIDGE} up",
                f"addr add {_GATEWAY_V4} dev {_BRIDGE}",
                f"addr add {_GATEWAY_V6} dev {_BRIDGE} nodad",
            )
        except BaseException:
            self._directory.cleanup()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for pod in list(self.pods.values()):
            self._let_go(pod)
        ip_batch(f"link delete {_BRIDGE}")
        self._directory.cleanup()

    def add_pod(
        self,
        name: str,
        *,
        v4: IPv4Address | None = None,
        v6: IPv6Address | None = None,
        ipv6: bool = True,
    ) -> Pod:
        """Make a pod with the addresses given, or the next free ones.

        Without `ipv6` it has no such address, and IPv6 is disabled on all its
        interfaces, `lo` among them.
        """
        self._count += 1
        pod = Pod(
            name=name,
            path=os.path.join(self._directory.name, name),
            link=f"pod{next(_link_numbers)}",
            v4=v4 or _GATEWAY_V4.ip + self._count,
            v6=(v6 or _GATEWAY_V6.ip + self._count) if ipv6 else None,
        )
        with open(pod.path, "xb"):
            pass
        self.pods[name] = pod
        try:
            call_in_thread(lambda: _become(pod))
            # The end that is up first hears late that there is another one, so
            # the pod's, whose addresses wait for it, comes second.
            ip_batch(
                f"link add {pod.link} type veth peer name eth0 netns {pod.path}",
                f"link set {pod.link} master {_BRIDGE} up",
            )
            pod.run(lambda: _configure(pod))
            _await_forwarding(pod.link)
        except BaseException:
            self.delete(pod)
            raise
        return pod

    def delete(self, pod: Pod) -> None:
        """Unplug `pod` and let go of its namespace; it ends when nobody else holds it."""
        self._let_go(pod)
        # Not there if the pod was not finished, or its namespace has just ended.
        subprocess.run(["ip", "link", "delete", pod.link], stderr=subprocess.DEVNULL, check=False)

    def _let_go(self, pod: Pod) -> None:
        del self.pods[pod.name]
        _libc.umount2(pod.path.encode(), _MNT_DETACH)  # not mounted if its making failed
        os.unlink(pod.path)


def ip_batch(*commands: str) -> None:
    """Run `commands` of the ``ip`` program, all in one process."""
    subprocess.run(
        ["ip", "-batch", "-"],
        input="\n".join(commands) + "\n",
        text=True,
        check=True,
        stdout=subprocess.DEVNULL,
    )


def _await_forwarding(link: str) -> None:
    """Until then the bridge drops what comes in, and a lost neighbor request costs a second."""
    deadline = time.monotonic() + PATIENCE
    show = ["bridge", "link", "show", "dev", link]
    while b"state forwarding" not in subprocess.run(show, capture_output=True, check=True).stdout:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{link} never came up")


def _become(pod: Pod) -> None:
    """Give the calling thread a new network namespace, and a path to it."""
    kernel.unshare(kernel.CLONE_NEWNET)
    own = b"/proc/thread-self/ns/net"
    if _libc.mount(own, pod.path.encode(), None, _MS_BIND, None) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), pod.path)
    if pod.v6 is None:
        for interface in ("all", "default", "lo"):
            with open(f"/proc/sys/net/ipv6/conf/{interface}/disable_ipv6", "w") as setting:
                setting.write("1")


def _configure(pod: Pod) -> None:
    commands = [
        "link set lo up",
        "link set eth0 up",
        f"addr add {pod.v4}/{_GATEWAY_V4.network.prefixlen} dev eth0",
        f"route add default via {_GATEWAY_V4.ip}",
    ]
    if pod.v6 is not None:
        commands += [
            f"addr add {pod.v6}/{_GATEWAY_V6.network.prefixlen} dev eth0 nodad",
            f"route add ::/0 via {_GATEWAY_V6.ip}",
        ]
    ip_batch(*commands)
