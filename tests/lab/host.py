"""A host for probe sets: a network namespace, and a look at its rules that is not the agent's."""

import contextlib
import json
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TypeVar

import nftables

from nodeagent.linux import syscalls as kernel
from nodeagent.mesh.pod import IPAddress, Pod, PodUID
from nodeagent.netfilter.nfnetlink import NETLINK_NETFILTER, NFNLGRP_NFTABLES
from nodeagent.netns.netns import Netns
from nodeagent.netns.threads import NetnsThreads
from nodeagent.probes.branch_interfaces import BranchInterfaces
from nodeagent.probes.host_probes import HostProbes
from nodeagent.probes.nft_backend import NftProbeBackend
from nodeagent.probes.removal import Removal, remove_ours
from nodeagent.probes.rules import ProbeRules
from tests.lab.pod import call_in_thread

T = TypeVar("T")

PROBE_V4 = IPv4Address("169.254.7.127")
PROBE_V6 = IPv6Address("fd16:9254:7127:1337:ffff:ffff:ffff:ffff")
TABLE = "inet istio-ambient-nat"
CHAIN = "nodeagent-postrouting"
SET_V4, SET_V6 = "istio-inpod-probes-v4", "istio-inpod-probes-v6"


class Host:
    """Borrows a network namespace."""

    def __init__(self, netns: Netns) -> None:
        self.netns = netns

    def run(self, function: Callable[[], T]) -> T:
        """Call `function` in a thread inside."""

        def enter() -> T:
            kernel.setns(self.netns.fd, kernel.CLONE_NEWNET)
            return function()

        return call_in_thread(enter)

    def nft(self, command: str, *, js: bool = False) -> str:
        """Run nft's `command`; return what it prints, with handles and counters."""

        def work() -> str:
            library = nftables.Nftables()
            library.set_handle_output(True)
            library.set_json_output(js)
            code, output, errors = library.cmd(command)
            if code != 0:
                raise AssertionError(errors)
            return str(output)

        return self.run(work)

    def owners(self, *names: str) -> dict[IPAddress, str]:
        """The comment of every address in the sets, by default in both."""
        found: dict[IPAddress, str] = {}
        for name in names or (SET_V4, SET_V6):
            reply = json.loads(self.nft(f"list set {TABLE} {name}", js=True))
            for element in reply["nftables"][1]["set"].get("elem", []):
                plain = isinstance(element, str)
                key = element if plain else element["elem"]["val"]
                found[ip_address(key)] = "" if plain else element["elem"]["comment"]
        return found

    @contextlib.contextmanager
    def news(self) -> Iterator[Callable[[], list[int]]]:
        """Hear of every change to the rules; the call returns the kinds of messages so far."""

        def listen() -> socket.socket:
            made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
            made.bind((0, 1 << NFNLGRP_NFTABLES - 1))
            made.setblocking(False)
            return made

        with self.run(listen) as listener:
            yield lambda: list(_kinds(listener))


def _kinds(listener: socket.socket) -> Iterator[int]:
    with contextlib.suppress(BlockingIOError):
        while data := listener.recv(65536):
            while data:
                length, kind = struct.unpack_from("=IH", data)
                yield kind & 0xFF
                data = data[length + 3 & ~3 :]


@contextlib.contextmanager
def new_host() -> Iterator[Host]:
    """Make a namespace that nothing has happened in."""

    def become() -> Netns:
        kernel.unshare(kernel.CLONE_NEWNET)
        return Netns.current()

    with call_in_thread(become) as netns:
        yield Host(netns)


@contextlib.asynccontextmanager
async def probes_of(
    host: Host,
    threads: NetnsThreads,
    *,
    probe_v4: IPv4Address = PROBE_V4,
    ipv6: bool = True,
    branch_interfaces: bool = True,
) -> AsyncIterator[HostProbes]:
    """What one run of the agent has; at its end the kernel keeps everything."""
    rules = probe_rules(probe_v4=probe_v4, ipv6=ipv6)
    branches = BranchInterfaces(wanted=branch_interfaces)
    probes = HostProbes(threads, host.netns, NftProbeBackend(rules), branches)
    async with contextlib.aclosing(probes):
        yield probes


def probe_rules(*, probe_v4: IPv4Address = PROBE_V4, ipv6: bool = True) -> ProbeRules:
    """The rules for these settings."""
    return ProbeRules(probe_v4=probe_v4, probe_v6=PROBE_V6, ipv6=ipv6)


def uninstall(host: Host) -> Removal:
    """Remove what is proven to be ours, in every backend."""
    return host.run(partial(remove_ours, probe_rules()))


def enrolled(uid: str, *addresses: str | IPAddress) -> Pod:
    """A pod with these addresses."""
    return Pod(
        uid=PodUID(uid),
        name=f"pod-{uid}"[:63],
        namespace="default",
        addresses=tuple(ip_address(address) for address in addresses),
    )
