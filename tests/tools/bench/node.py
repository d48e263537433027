"""Pods as cheap as they can be: a network namespace with an address on `lo`, and a manifest."""

import os
import socket
import struct
import tempfile
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Self

from nodeagent.linux import syscalls as kernel
from nodeagent.linux.netlink import NLM_F_CREATE, NLM_F_EXCL, Netlink, attribute
from nodeagent.netns.netns import Netns
from tests.lab.pod import call_in_thread

# linux/rtnetlink.h and linux/if_addr.h
_RTM_NEWLINK, _RTM_NEWADDR = 16, 20
_IFF_UP = 1
_IFA_LOCAL = 2
_LOOPBACK_INDEX = 1
_FIRST_ADDRESS = IPv4Address("10.64.0.1")

_MANIFEST = """\
apiVersion: v1
kind: Pod
metadata:
  name: {name}
  namespace: bench
  uid: {uid}
  labels:
    app: {name}
    istio.io/dataplane-mode: {mode}
  annotations:
    nodeagent.io/netns: {netns}
spec:
  serviceAccountName: clerk
"""
_STATUS = """\
status:
  phase: Running
  podIPs:
  - ip: {address}
"""


@dataclass(frozen=True, slots=True)
class Pod:
    """Borrowed from the `Node`."""

    number: int
    netns: Netns

    @property
    def name(self) -> str:
        return f"pod-{self.number}"

    @property
    def path(self) -> str:
        """Of its network namespace."""
        return f"/proc/{os.getpid()}/fd/{self.netns.fd}"

    @property
    def address(self) -> IPv4Address:
        return _FIRST_ADDRESS + self.number

    def uid(self, life: int = 0) -> str:
        """Each `life` of the same namespace is another pod to the agent."""
        return f"00000000-0000-4000-8000-{life:04}{self.number:08}"


class Node:
    """Owns namespaces and folders until the end of its ``with``.

    The namespaces stay till then: their end, which the kernel sees to in the
    background, would disturb what is measured meanwhile.
    """

    def __init__(self) -> None:
        self._opened = ExitStack()
        self._count = 0
        directory = self._opened.enter_context(tempfile.TemporaryDirectory(prefix="bench-"))
        self.directory = directory
        self.manifests = os.path.join(directory, "manifests")
        self._staging = os.path.join(directory, "staging")
        os.mkdir(self.manifests)
        os.mkdir(self._staging)

    def pods(self, count: int) -> list[Pod]:
        """Make so many, with nothing of ours in them."""

        def make() -> list[Netns]:
            return [
                self._opened.enter_context(_new_namespace(_FIRST_ADDRESS + self._count + n))
                for n in range(count)
            ]

        namespaces = call_in_thread(make)
        made = [Pod(self._count + n, namespace) for n, namespace in enumerate(namespaces)]
        self._count += count
        return made

    def stage(
        self, pods: Iterable[Pod], *, life: int = 0, mode: str = "ambient", pending: bool = False
    ) -> None:
        """Write the manifests where nobody looks; `pending`: the pods have no sandbox yet."""
        for pod in pods:
            text = _MANIFEST.format(name=pod.name, uid=pod.uid(life), mode=mode, netns=pod.path)
            if not pending:
                text += _STATUS.format(address=pod.address)
            with open(self._staged(pod), "w", encoding="utf-8") as file:
                file.write(text)

    def move_in(self, pods: Iterable[Pod]) -> None:
        """Show the agent what was staged; a manifest that was there is replaced."""
        for pod in pods:
            os.rename(self._staged(pod), self._shown(pod))

    def delete(self, pods: Iterable[Pod]) -> None:
        """Delete the manifests that the agent sees: the pods are gone."""
        for pod in pods:
            os.unlink(self._shown(pod))

    def _staged(self, pod: Pod) -> str:
        return os.path.join(self._staging, f"{pod.name}.yaml")

    def _shown(self, pod: Pod) -> str:
        return os.path.join(self.manifests, f"{pod.name}.yaml")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()


def _new_namespace(address: IPv4Address) -> Netns:
    """Move the calling thread into a new namespace that has `address`."""
    kernel.unshare(kernel.CLONE_NEWNET)
    with Netlink(socket.NETLINK_ROUTE) as netlink:
        link = struct.pack("=BxHiII", socket.AF_UNSPEC, 0, _LOOPBACK_INDEX, _IFF_UP, _IFF_UP)
        netlink.request(_RTM_NEWLINK, 0, link)
        header = struct.pack("=BBBBI", socket.AF_INET, 32, 0, 0, _LOOPBACK_INDEX)
        local = attribute(_IFA_LOCAL, address.packed)
        netlink.request(_RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, header + local)
    return Netns.open("/proc/thread-self/ns/net")
