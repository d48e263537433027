"""``install-cni``: the agent as Istio's own chart starts it, with nothing but the image changed.

The chart's flags and variables are translated by `istio_settings`; its mounts, rights and
capabilities are all that the agent has. Everything else is ``nodeagent run``.
"""

import argparse
import contextlib
import os
from collections.abc import Mapping, Sequence

import structlog

from nodeagent import config, log
from nodeagent.commands import run
from nodeagent.commands.istio_settings import translate

_log = structlog.get_logger()


def start(arguments: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run the agent until a signal ends it; the exit status.

    Raises ``SettingError`` and what ``nodeagent run`` raises.
    """
    translation = translate(arguments, environ)
    settings = config.load({}, translation.environ)
    log.configure(settings.log_level, settings.log_format)
    if translation.without_effect:
        _log.info(
            "settings of istio-cni that have no effect here",
            settings=list(translation.without_effect),
        )
    _link_run(settings.host_prefix)
    return run.main(argparse.Namespace(), settings)


def _link_run(prefix: str) -> None:
    """Let paths that begin with ``/run`` lead where the chart has mounted ``/var/run/netns``.

    On a host ``/var/run`` is ``/run``, and runtimes name network namespaces either way. In a
    container whose root cannot be written to the pod's processes lead to its namespace.
    """
    if os.path.isdir(f"{prefix}/var/run"):
        with contextlib.suppress(OSError):
            os.symlink("var/run", f"{prefix}/run")
