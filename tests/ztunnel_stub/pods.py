"""Network namespaces that stand for pods."""

import os
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from nodeagent.linux import syscalls as kernel
from nodeagent.netns.netns import Netns

P = ParamSpec("P")
T = TypeVar("T")


class Pod:
    """A network namespace with a thread that lives in it."""

    def __init__(self, *commands: str) -> None:
        """Set `lo` up and run `commands` inside."""
        self._thread = ThreadPoolExecutor(1)
        self.call(kernel.unshare, kernel.CLONE_NEWNET)
        self.netns = self.call(Netns.current)
        self.shell("ip link set lo up", *commands)

    @property
    def path(self) -> str:
        """Names the netns for other programs."""
        return f"/proc/{os.getpid()}/fd/{self.netns.fd}"

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The result of `function`, called inside."""
        return self._thread.submit(function, *args, **kwargs).result()

    def shell(self, *commands: str) -> str:
        """Run `commands` inside; what the last one wrote."""
        output = ""
        for command in commands:
            output = self.call(_run, command)
        return output

    def load(self, rules: str) -> None:
        """Give `rules` to nft, inside."""
        self.call(_run, "nft -f -", rules)

    def close(self) -> None:
        self._thread.shutdown()
        self.netns.close()


def join(pod: Pod, neighbor: Pod) -> None:
    """Lay a cable: `pod` gets 10.77.0.1 and fd77::1, `neighbor` the addresses that end in 2."""
    pod.shell(f"ip link add eth0 type veth peer name eth0 netns {neighbor.path}")
    pod.shell("ip link set eth0 up")
    neighbor.shell("ip link set eth0 up")
    # The end that was up first learns of its carrier up to a second later: start it anew.
    pod.shell("ip link set eth0 down", "ip link set eth0 up")
    for number, end in enumerate((pod, neighbor), start=1):
        end.shell(
            f"ip addr add 10.77.0.{number}/24 dev eth0",
            f"ip addr add fd77::{number}/64 dev eth0 nodad",
        )


def _run(command: str, stdin: str | None = None) -> str:
    result = subprocess.run(
        command.split(), input=stdin, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, f"{command}: {result.stderr}"
    return result.stdout
