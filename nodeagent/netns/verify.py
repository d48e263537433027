"""Making sure that a netns is the pod's before anything is done in it (L10)."""

import os
from collections.abc import Iterable

from nodeagent.mesh.errors import GiveUpError, RetryError
from nodeagent.mesh.pod import IPAddress, Pod
from nodeagent.netns.addresses import local_addresses
from nodeagent.netns.netns import Netns, NetnsId, NotANetnsError
from nodeagent.netns.threads import NetnsThreads


class HostNetnsError(GiveUpError):
    """The netns is the host's: rules in it would redirect the node."""


class ForeignNetnsError(RetryError):
    """The netns has none of the pod's addresses: not yet, or it is another pod's."""


class Verifier:
    """Checks that a netns is the pod's."""

    def __init__(self, threads: NetnsThreads, host: Iterable[NetnsId]) -> None:
        """`host`: the netns that no pod can have."""
        self._threads = threads
        self._host = frozenset(host)

    async def open(self, path: str, pod: Pod) -> Netns:
        """Open what is at `path` and `verify` it; the caller owns it.

        Raises what `verify` does, and ``RetryError`` where `path` cannot be opened or is no netns.
        """
        try:
            netns = Netns.open(path)
        except NotANetnsError as error:
            # The runtime makes a file and mounts the netns over it: it may be one soon.
            raise RetryError(f"{path} is {error}") from error
        except OSError as error:
            raise RetryError(f"cannot open {path}: {error.strerror}") from error
        try:
            await self.verify(netns, pod)
        except BaseException:
            netns.close()
            raise
        return netns

    async def verify(self, netns: Netns, pod: Pod) -> None:
        """Check that `netns` is not the host's and has an address of `pod`.

        A process of one pod can be passing through another pod's netns. An address is
        the only thing that tells the two apart. Raises
        ``HostNetnsError``, ``ForeignNetnsError``, and ``RetryError`` if it
        cannot be entered.
        """
        if netns.id in self._host:
            raise HostNetnsError(f"{netns.id} is the host's network namespace")
        try:
            held = await self._threads.run(netns, local_addresses)
        except OSError as error:
            raise RetryError(f"cannot look into {netns.id}: {error.strerror}") from error
        if held.isdisjoint(address for address in pod.addresses if _tells_pods_apart(address)):
            raise ForeignNetnsError(
                f"{netns.id} holds none of the pod's addresses ({_list(pod.addresses)})"
            )


def host_netns_ids(host_netns: str | None) -> frozenset[NetnsId]:
    """The netns that no pod can have: the agent's own, the host's, and that of PID 1.

    `host_netns` is a path, None for the agent's own; raises ``OSError`` where it
    cannot be looked at. PID 1's may be out of reach, in a user namespace or
    without CAP_SYS_PTRACE.
    """
    found = {NetnsId.of_path(path) for path in ("/proc/self/ns/net", host_netns) if path}
    if os.access("/proc/1/ns/net", os.R_OK):
        found.add(NetnsId.of_path("/proc/1/ns/net"))
    return frozenset(found)


def _tells_pods_apart(address: IPAddress) -> bool:
    # Every netns has a loopback, and may have the same link-local addresses.
    return not (address.is_loopback or address.is_link_local)


def _list(addresses: Iterable[IPAddress]) -> str:
    return ", ".join(map(str, addresses)) or "none known"
