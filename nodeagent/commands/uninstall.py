"""``nodeagent uninstall``: everything of the agent's is removed from the host."""

import argparse
import asyncio
import contextlib

from nodeagent.admin.client import NoAgentError, fetch_workloads
from nodeagent.agent.uninstall import uninstall
from nodeagent.cluster.api import NoClusterError
from nodeagent.commands.errors import CommandError, no_cluster
from nodeagent.config import Settings


def main(options: argparse.Namespace, settings: Settings) -> int:
    """Remove everything and print what was done; 1 where something is left to do.

    Raises ``CommandError``, ``RetryError``, ``OSError``.
    """
    _check_no_agent(settings.admin_socket)
    try:
        report = asyncio.run(uninstall(settings, release_pods=options.release_pods))
    except NoClusterError as error:
        raise no_cluster(error) from error
    print(*report.lines, sep="\n")
    return 0 if report.complete else 1


def _check_no_agent(socket: str) -> None:
    with contextlib.suppress(NoAgentError):
        fetch_workloads(socket)
        raise CommandError(
            f"an agent runs on this node (it answers at {socket}), and would put back what is"
            " taken out. Delete its DaemonSet: the agent uninstalls itself then, and releases the"
            " pods of its node before, with RELEASE_PODS_ON_UNINSTALL=true"
        )
