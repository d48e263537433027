"""One pod of the lab: a network namespace with an address or two."""

import socket
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import TypeVar

from nodeagent.linux import syscalls as kernel
from nodeagent.netns.netns import Netns

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """Borrowed from the `Lab` that made it."""

    name: str
    path: str
    """Of its network namespace, for the annotation ``nodeagent.io/netns``."""
    link: str
    """The bridge's end of its cable; the pod's is `eth0`."""
    v4: IPv4Address
    v6: IPv6Address | None

    @property
    def addresses(self) -> tuple[IPv4Address | IPv6Address, ...]:
        """IPv4 first."""
        return (self.v4,) if self.v6 is None else (self.v4, self.v6)

    def run(self, function: Callable[[], T]) -> T:
        """Call `function` in a thread inside the pod's namespace."""

        def enter() -> T:
            with Netns.open(self.path) as netns:
                kernel.setns(netns.fd, kernel.CLONE_NEWNET)
            return function()

        return call_in_thread(enter)

    def shell(self, *commands: str, stdin: str | None = None) -> str:
        """Run `commands` inside, one after the other; return what the last one wrote."""
        output = ""
        for command in commands:
            result = subprocess.run(
                ["nsenter", f"--net={self.path}", *command.split()],
                input=stdin,
                capture_output=True,
                text=True,
                check=False,
            )
            if result.returncode != 0:
                raise AssertionError(f"{self.name}: {command}: {result.stderr.strip()}")
            output = result.stdout
        return output

    def socket(
        self,
        family: socket.AddressFamily = socket.AF_INET,
        kind: socket.SocketKind = socket.SOCK_STREAM,
        *,
        mark: int | None = None,
    ) -> socket.socket:
        """Open a non-blocking socket inside, with `mark` on what it sends; the caller closes it."""
        made = self.run(lambda: socket.socket(family, kind))
        made.setblocking(False)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if mark is not None:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        return made


def call_in_thread(function: Callable[[], T]) -> T:
    """Call `function` in a thread of its own, which may change its namespaces: it ends here."""
    result: Future[T] = Future()

    def work() -> None:
        try:
            result.set_result(function())
        except BaseException as error:  # noqa: BLE001 - raised again in the caller
            result.set_exception(error)

    thread = threading.Thread(target=work, name="lab")
    thread.start()
    thread.join()
    return result.result()
