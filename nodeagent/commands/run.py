"""``nodeagent run``: the agent itself."""

import argparse

from nodeagent import loop_watch
from nodeagent.agent.run import run
from nodeagent.cluster.api import NoClusterError
from nodeagent.cni.install.binary import NoBinaryError
from nodeagent.commands.errors import CommandError, no_cluster
from nodeagent.config import Settings


def main(_: argparse.Namespace, settings: Settings) -> int:
    """Run the agent until a signal ends it; the exit status.

    Raises ``CommandError``, ``RetryError``, ``OSError``.
    """
    try:
        return loop_watch.run(run(settings))
    except NoClusterError as error:
        raise no_cluster(error) from error
    except NoBinaryError as error:
        raise CommandError(str(error)) from error
