"""A host on iptables: a look at its chains and ipsets that is not the agent's."""

import contextlib
import shlex
import subprocess
from collections.abc import AsyncIterator, Iterator
from ipaddress import ip_address

from nodeagent.mesh.pod import IPAddress
from nodeagent.netfilter.iptables_programs import Variant
from nodeagent.netns.threads import NetnsThreads
from nodeagent.probes.migration import BackendMigration
from tests.lab.host import SET_V4, SET_V6, Host, new_host, probe_rules

KINDS = (None, *Variant)
"""nftables and the two of iptables, as `BackendMigration` takes them."""


class IptablesHost(Host):
    """Also answers to the programs."""

    def shell(self, *commands: str, stdin: str | None = None) -> str:
        """Run `commands` inside, one after the other; return what the last one wrote."""

        def work() -> str:
            output = ""
            for command in commands:
                done = subprocess.run(
                    shlex.split(command), input=stdin, capture_output=True, text=True, check=False
                )
                if done.returncode != 0:
                    raise AssertionError(f"{command}: {done.stderr.strip()}")
                output = done.stdout
            return output

        return self.run(work)

    def ipset_owners(self, *names: str) -> dict[IPAddress, str]:
        """The comment of every address in the ipsets, by default in both."""
        found: dict[IPAddress, str] = {}
        for name in names or (SET_V4, SET_V6):
            for line in self.shell(f"ipset save {name}").splitlines():
                words = shlex.split(line)
                if words[0] == "add":
                    found[ip_address(words[2])] = words[4] if len(words) > 4 else ""
        return found

    def iptables(self, variant: Variant, *, family: str = "", counters: bool = False) -> str:
        """Everything that iptables has, by default in both families, without dates."""
        option = " -c" if counters else ""
        programs = [family] if family else ["iptables", "ip6tables"]
        text = "".join(self.shell(f"{program}-{variant}-save{option}") for program in programs)
        lines = [line for line in text.splitlines() if not line.startswith("#")]
        return "\n".join(line if counters else line.partition(" [")[0] for line in lines)

    def legacy_tables(self) -> str:
        """The legacy tables that were ever made here."""
        names = [f"/proc/thread-self/net/{name}_tables_names" for name in ("ip", "ip6")]
        return self.run(lambda: "".join(map(_text_of, names)))


def _text_of(path: str) -> str:
    with open(path) as file:
        return file.read()


@contextlib.contextmanager
def new_iptables_host() -> Iterator[IptablesHost]:
    """Make a namespace that nothing has happened in."""
    with new_host() as host:
        yield IptablesHost(host.netns)


@contextlib.asynccontextmanager
async def probes_in(
    kind: Variant | None, host: Host, threads: NetnsThreads, *, ipv6: bool = True
) -> AsyncIterator[BackendMigration]:
    """What one run of the agent has; at its end the kernel keeps everything."""
    probes = BackendMigration(kind, probe_rules(ipv6=ipv6), threads, host.netns)
    async with contextlib.aclosing(probes):
        yield probes
