"""A pod of the API, with the sandbox that the container runtime has for it."""

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from nodeagent.mesh.pod import IPAddress
from tests.lab import pod as lab

OUTBOUND = 15001
"""ztunnel's port for what the pod's applications dial."""
_LISTENS = "0A"  # TCP_LISTEN, in /proc/net/tcp


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """A pod of the API, and its sandbox."""

    name: str
    namespace: str
    uid: str
    sandbox: str
    netns: str
    addresses: tuple[IPAddress, ...]

    @property
    def path(self) -> str:
        """Where the API has it."""
        return f"/api/v1/namespaces/{self.namespace}/pods/{self.name}"

    @property
    def inside(self) -> lab.Pod:
        """Its network namespace, to talk from."""
        v4 = next(each for each in self.addresses if isinstance(each, IPv4Address))
        v6 = next((each for each in self.addresses if isinstance(each, IPv6Address)), None)
        return lab.Pod(name=self.name, path=self.netns, link="", v4=v4, v6=v6)

    def rules(self) -> str:
        """What stands in it, with handles: rules that were made anew differ."""
        return self.inside.shell("nft -a -s list ruleset")

    def listeners(self, port: int) -> int:
        """How many sockets of dual stack listen there inside it."""
        rows = [line.split() for line in self.inside.shell("cat /proc/net/tcp6").splitlines()[1:]]
        return sum(row[1].endswith(f":{port:04X}") and row[3] == _LISTENS for row in rows)
