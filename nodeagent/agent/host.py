"""What the agent opens and decides in the host's netns, as the settings have it.

Where that netns is, which backend writes rules on this node, and the probe set in it.
"""

import contextlib
from collections.abc import AsyncIterator
from functools import partial

import structlog

from nodeagent.config import Settings
from nodeagent.mesh.errors import RetryError
from nodeagent.netfilter.errors import RulesError
from nodeagent.netfilter.iptables_programs import Variant
from nodeagent.netfilter.iptables_variant import find_variant
from nodeagent.netns.netns import Netns
from nodeagent.netns.threads import NetnsThreads
from nodeagent.observer import Observer
from nodeagent.probes.migration import BackendMigration
from nodeagent.probes.rules import ProbeRules

log = structlog.get_logger()


@contextlib.asynccontextmanager
async def host_probes(
    settings: Settings, threads: NetnsThreads, variant: Variant | None, observer: Observer
) -> AsyncIterator[BackendMigration]:
    """The host's probe set in the backend for `variant`, None for nftables; closed at the end.

    Nothing is installed yet: call `BackendMigration.start`. Raises ``OSError``.
    """
    with open_host_netns(settings) as host:
        probes = BackendMigration(
            variant,
            probe_rules(settings),
            threads,
            host,
            observer,
            branch_interfaces=settings.ambient_enable_aws_branch_eni_probe,
        )
        async with contextlib.aclosing(probes):
            yield probes


def probe_rules(settings: Settings) -> ProbeRules:
    """The rules for health probes that the host should have by the settings."""
    return ProbeRules(
        probe_v4=settings.host_probe_snat_ip,
        probe_v6=settings.host_probe_snat_ipv6,
        ipv6=settings.ambient_ipv6,
    )


async def iptables_variant(settings: Settings, threads: NetnsThreads) -> Variant | None:
    """The variant of iptables that writes the rules of this node; None: nftables does.

    Raises ``OSError``, and ``RetryError`` where the host's rules are to say the variant and
    cannot be listed.
    """
    forced = Variant(settings.force_iptables_binary) if settings.force_iptables_binary else None
    if settings.native_nftables:
        if forced:
            log.warning("FORCE_IPTABLES_BINARY has no effect: NATIVE_NFTABLES is on")
        return None
    with open_host_netns(settings) as host:
        find = partial(find_variant, forced, settings.cni_agent_run_dir)
        try:
            variant = await threads.run(host, find)
        except RulesError as error:
            raise RetryError(f"FORCE_IPTABLES_BINARY is not set, and {error}") from error
    log.info("rules are written through iptables", variant=str(variant))
    return variant


def open_host_netns(settings: Settings) -> Netns:
    """Open the host's netns, for the caller to close. Raises ``OSError``."""
    return Netns.open(host_path(settings) or "/proc/thread-self/ns/net")


def host_path(settings: Settings) -> str | None:
    """The path of the host's netns; None: it is the netns that the agent runs in."""
    if settings.host_netns is None and settings.host_prefix:
        return settings.on_host("/proc/1/ns/net")
    return settings.host_netns
