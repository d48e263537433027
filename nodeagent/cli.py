"""The command line: which commands there are, and what each of them takes.

A command is a module of `nodeagent.commands` with a function ``main``. It is imported only
when it is asked for, so that ``--help`` and ``nodeagent status`` are quick.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from itertools import groupby
from types import ModuleType

from nodeagent import __version__, config, log
from nodeagent.commands.errors import CommandError
from nodeagent.lean_imports import no_certificate_authorities
from nodeagent.mesh.errors import RetryError

_EXAMPLES = """\
examples:
  nodeagent run --pod-manifests ./pods
  nodeagent check
  nodeagent status
  nodeagent history shop/web
  nodeagent verify --all
  nodeagent explain shop/web
  nodeagent rules --ambient-dns-capture=false
  nodeagent rules --pod-manifests ./pods --pod shop/web | nft -c -f -

Each command has its own --help. A setting is given as a flag or as an environment
variable; the flag counts where both are there.
"""
_INSTALL_CNI = "install-cni"
_A_POD = "NAMESPACE/POD, a pod's name alone, or a UID"
_WRONG_USE = 2
"""Exit status, as argparse has it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status."""
    given = sys.argv[1:] if arguments is None else arguments
    if given[:1] == [_INSTALL_CNI]:
        return install_cni(given[1:])
    options = _parser().parse_args(given)
    names = {setting.attribute for setting in config.SETTINGS}
    flags = {name: text for name, text in vars(options).items() if name in names}

    def command() -> int:
        settings = config.load(flags, os.environ)
        log.configure(settings.log_level, settings.log_format)
        status: int = _imported(options.module).main(options, settings)
        return status

    return _answered(command)


def install_cni(arguments: Sequence[str] | None = None) -> int:
    """Be the program ``install-cni``, which the chart of istio-cni starts; the exit status."""
    given = sys.argv[1:] if arguments is None else arguments

    def command() -> int:
        status: int = _imported("nodeagent.commands.install_cni").start(given, os.environ)
        return status

    return _answered(command)


def _imported(module: str) -> ModuleType:
    # aiohttp, as it is imported, makes a TLS context for clients that bring none: 2.4 MiB
    # and 55 ms for the machine's certificate authorities. The agent always brings its own.
    with no_certificate_authorities():
        return importlib.import_module(module)


def _answered(command: Callable[[], int]) -> int:
    try:
        return command()
    except config.SettingError as error:
        return _failed(str(error), status=_WRONG_USE)
    except (CommandError, RetryError) as error:
        return _failed(str(error))
    except OSError as error:
        return _failed(": ".join(filter(None, (error.filename, error.strerror))) or str(error))


def _failed(text: str, *, status: int = 1) -> int:
    print(f"nodeagent: {log.printable(text)}", file=sys.stderr)
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

    def add(name: str, about: str, *, module: str = "") -> argparse.ArgumentParser:
        added = commands.add_parser(
            name,
            help=about,
            description=about[0].upper() + about[1:] + ".",
            usage=f"nodeagent {name} [setting ...]",
            formatter_class=_Help,
            allow_abbrev=False,
        )
        added.set_defaults(module=f"nodeagent.commands.{module or name}")
        return added

    _add_settings(add("run", "run the agent until it is told to stop (SIGTERM)"))
    # Only for the help: its flags are those of istio-cni.
    add(
        _INSTALL_CNI, "run as the chart of istio-cni starts its agent, with its flags and variables"
    )
    _add_settings(
        add(
            "check", "say whether this node can do the job, and what is missing", module="check.run"
        )
    )
    rules = add("rules", "print the rules that a pod would get, in nft's language")
    rules.usage = "nodeagent rules [--pod NAMESPACE/NAME ...] [setting ...]"
    rules.add_argument(
        "--pod",
        action="append",
        default=[],
        metavar="NAMESPACE/NAME",
        help="a pod in --pod-manifests, with what its annotations ask for; may be repeated",
    )
    _add_settings(rules)
    uninstall = add("uninstall", "remove all from the host, when the agent goes for good")
    uninstall.usage = "nodeagent uninstall [--release-pods] [setting ...]"
    uninstall.add_argument(
        "--release-pods",
        action="store_true",
        help="take every pod of the node out of the mesh before, in order",
    )
    _add_settings(uninstall)
    status = add("status", "show the pods that the running agent knows, and why")
    status.usage = "nodeagent status [--json] [setting ...]"
    _add_json(status)
    _add_settings(status)
    history = add("history", "show what has happened to the node's pods lately")
    history.usage = "nodeagent history [--json] [POD ...] [setting ...]"
    _add_pods(history)
    _add_json(history)
    _add_settings(history)
    explain = add("explain", "explain one pod from its labels to ztunnel, with what to do")
    explain.usage = "nodeagent explain [--json] POD [setting ...]"
    explain.add_argument("pod", metavar="POD", help=_A_POD)
    _add_json(explain)
    _add_settings(explain)
    verify = add("verify", "look in the kernel now whether the pods are really redirected")
    verify.usage = "nodeagent verify [--json] [POD ... | --all] [setting ...]"
    _add_pods(verify, or_all=True)
    _add_json(verify)
    _add_settings(verify)
    return parser


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="all that is known, for programs")


def _add_pods(parser: argparse.ArgumentParser, *, or_all: bool = False) -> None:
    group = parser.add_mutually_exclusive_group()
    group.add_argument("pods", nargs="*", default=[], metavar="POD", help=_A_POD)
    if or_all:
        group.add_argument("--all", action="store_true", help="every pod of the node, the default")


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
