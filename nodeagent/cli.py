"""The command line: what can be asked for, and who answers."""

# ruff: noqa: PLC0415 - a command loads its own part only: --help and status stay quick
# ruff: noqa: T201 - a command's answer is what it prints

import argparse
import asyncio
import os
import sys
from collections.abc import Callable, Sequence
from itertools import groupby

from nodeagent import __version__, config, log
from nodeagent.lean_imports import no_certificate_authorities
from nodeagent.mesh.errors import RetryError

_EXAMPLES = """\
examples:
  nodeagent run --pod-manifests ./pods
  nodeagent check
  nodeagent status
  nodeagent rules --ambient-dns-capture=false
  nodeagent rules --pod-manifests ./pods --pod shop/web | nft -c -f -

Each command has its own --help. A setting is given as a flag or as an environment
variable; the flag counts where both are there.
"""
_WRONG_USE = 2
"""Exit status, as argparse has it."""

_Command = Callable[[argparse.Namespace, config.Settings], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status."""
    options = _parser().parse_args(arguments)
    names = {setting.attribute for setting in config.SETTINGS}
    flags = {name: text for name, text in vars(options).items() if name in names}
    try:
        settings = config.load(flags, os.environ)
        log.configure(settings.log_level, settings.log_format)
        command: _Command = options.command
        return command(options, settings)
    except config.SettingError as error:
        return _failed(error, status=_WRONG_USE)


def _run(_: argparse.Namespace, settings: config.Settings) -> int:
    # aiohttp, as it is imported, makes a TLS context for those that bring none: 2.4 MiB and
    # 55 ms for the machine's certificate authorities. The agent always brings its own.
    with no_certificate_authorities():
        from nodeagent import loop_watch
        from nodeagent.agent import run as agent
        from nodeagent.cluster.api import NoClusterError
        from nodeagent.cni.install.binary import NoBinaryError

    try:
        return _answered(lambda: loop_watch.run(agent.run(settings)))
    except NoClusterError as error:
        return _failed(f"{error}. Without a cluster, name a folder of manifests (POD_MANIFESTS)")
    except NoBinaryError as error:
        return _failed(error)


def _uninstall(options: argparse.Namespace, settings: config.Settings) -> int:
    from nodeagent.agent import leaving
    from nodeagent.cluster.api import NoClusterError

    def remove() -> int:
        leaving.check_no_agent(settings)
        done = asyncio.run(leaving.uninstall(settings, release_pods=options.release_pods))
        for line in done.lines:
            print(line)
        return 0 if done.complete else 1

    try:
        return _answered(remove)
    except NoClusterError as error:
        return _failed(f"{error}. Without a cluster, name a folder of manifests (POD_MANIFESTS)")


def _check(_: argparse.Namespace, settings: config.Settings) -> int:
    from nodeagent.commands.check.check import show
    from nodeagent.commands.check.run import run_checks

    return _answered(lambda: show(asyncio.run(run_checks(settings))))


def _rules(options: argparse.Namespace, settings: config.Settings) -> int:
    from nodeagent.commands import rules as preview

    try:
        for text in preview.rules(settings, options.pod):
            print(text)
    except preview.UnknownPodError as error:
        return _failed(error)
    except OSError as error:
        return _failed(_words(error))
    return 0


def _status(options: argparse.Namespace, settings: config.Settings) -> int:
    from nodeagent.admin import client

    try:
        return client.status(settings.admin_socket, as_json=options.json)
    except client.NoAgentError as error:
        return _failed(error)


def _answered(command: Callable[[], int]) -> int:
    try:
        return command()
    except RetryError as error:
        return _failed(error)
    except OSError as error:
        return _failed(_words(error))


def _words(error: OSError) -> str:
    return ": ".join(filter(None, (error.filename, error.strerror))) or str(error)


def _failed(error: Exception | str, *, status: int = 1) -> int:
    print(f"nodeagent: {log.printable(str(error))}", file=sys.stderr)
    return status


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(f"nodeagent {__version__}")
        parser.exit()


class _Help(argparse.RawTextHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=8, width=100)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nodeagent",
        description="The node agent of Istio's ambient mode: "
        "redirects mesh pods and hands them to ztunnel.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show it and exit")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name: str, command: _Command, about: str) -> argparse.ArgumentParser:
        added = commands.add_parser(
            name,
            help=about,
            description=about[0].upper() + about[1:] + ".",
            usage=f"nodeagent {name} [setting ...]",
            formatter_class=_Help,
            allow_abbrev=False,
        )
        added.set_defaults(command=command)
        return added

    run = add("run", _run, "run the agent until it is told to stop (SIGTERM)")
    _add_settings(run)
    _add_settings(add("check", _check, "say whether this node can do the job, and what is missing"))
    rules = add("rules", _rules, "print the rules that a pod would get, in nft's language")
    rules.usage = "nodeagent rules [--pod NAMESPACE/NAME ...] [setting ...]"
    rules.add_argument(
        "--pod",
        action="append",
        default=[],
        metavar="NAMESPACE/NAME",
        help="a pod in --pod-manifests, with what its annotations ask for; may be repeated",
    )
    _add_settings(rules)
    uninstall = add(
        "uninstall", _uninstall, "remove all from the host, when the agent goes for good"
    )
    uninstall.usage = "nodeagent uninstall [--release-pods] [setting ...]"
    uninstall.add_argument(
        "--release-pods",
        action="store_true",
        help="take every pod of the node out of the mesh before, in order",
    )
    _add_settings(uninstall)
    status = add("status", _status, "show the pods that the running agent knows, and why")
    status.usage = "nodeagent status [--json] [setting ...]"
    status.add_argument("--json", action="store_true", help="all that is known, for programs")
    _add_settings(status)
    return parser


def _add_settings(parser: argparse.ArgumentParser) -> None:
    for group, settings in groupby(config.SETTINGS, key=lambda setting: setting.group):
        section = parser.add_argument_group(group)
        for setting in settings:
            section.add_argument(
                setting.flag,
                metavar=setting.metavar,
                default=argparse.SUPPRESS,
                help=f"{setting.help}\n{setting.variable}, default: {setting.default}",
            )
