"""``nodeagent check``: every check that the settings call for.

A check that needs what another one looks at comes behind it.
"""

import argparse
import asyncio

from nodeagent.commands.check.chain import check_chain
from nodeagent.commands.check.check import Check, show
from nodeagent.commands.check.cluster import check_cluster
from nodeagent.commands.check.node import (
    check_capabilities,
    check_legacy_lock,
    check_rules,
    check_selinux,
)
from nodeagent.commands.check.places import (
    check_directories,
    check_host_netns,
    check_netns_mounts,
    check_procfs,
    check_zds_socket,
)
from nodeagent.commands.check.runtime import check_runtime
from nodeagent.config import Settings


def main(_: argparse.Namespace, settings: Settings) -> int:
    """Print a line for each check; the exit status is 1 where something has to be done."""
    return show(asyncio.run(run_checks(settings)))


async def run_checks(settings: Settings) -> list[Check]:
    """Try what the agent is going to need, and leave nothing behind.

    Pods from a folder of manifests need neither a runtime nor a cluster.
    """
    checks = [
        check_capabilities(settings),
        *filter(None, [check_legacy_lock(settings)]),
        check_selinux(),
        await asyncio.to_thread(check_rules, settings),
        await check_host_netns(settings),
    ]
    if settings.pod_manifests is None:
        checks.append(check_procfs(settings))
        if mounts := check_netns_mounts(settings):
            checks.append(mounts)
        checks.append(await check_runtime(settings))
    checks += check_directories(settings)
    checks += await check_chain(settings)
    checks.append(check_zds_socket(settings))
    if settings.pod_manifests is None:
        checks += await check_cluster(settings)
    return checks
