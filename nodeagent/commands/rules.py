"""``nodeagent rules``: what a pod would get, as text for people and for ``nft -f``."""

import argparse
from collections.abc import Iterator, Sequence

from nodeagent.cluster.manifest_folder import ManifestFolder
from nodeagent.commands.errors import CommandError
from nodeagent.config import Settings, require_manifests
from nodeagent.log import printable
from nodeagent.mesh.pod import Pod
from nodeagent.redirect.defaults import NO_POD, RedirectDefaults
from nodeagent.redirect.nft_rules import render
from nodeagent.redirect.routes import LocalRoute, PolicyRule
from nodeagent.redirect.rules import REPLY_TABLE, SPARE_TABLES, RedirectSpec


def main(options: argparse.Namespace, settings: Settings) -> int:
    """Print the rules of each pod in `options.pod` (``NAMESPACE/NAME``), or the default rules.

    Raises ``SettingError``, ``CommandError``, and ``OSError`` if the folder cannot be read.
    """
    for text in _rules(settings, options.pod):
        print(text)
    return 0


def _rules(settings: Settings, pods: Sequence[str]) -> Iterator[str]:
    if not pods:
        yield _text(settings, NO_POD)
        return
    folder = require_manifests(settings)
    known = {str(pod): pod for pod in ManifestFolder(folder).pods()}
    for name in pods:
        if name not in known:
            raise CommandError(f"there is no pod {name} in {folder}")
        yield f"# pod {name}\n{_text(settings, known[name])}"


def _text(settings: Settings, pod: Pod) -> str:
    spec, warnings = RedirectDefaults.from_settings(settings).of(pod)
    notes = [*map(printable, warnings), *_routing(spec)]
    return "".join(f"# {note}\n" for note in notes) + render(spec)


def _routing(spec: RedirectSpec) -> Iterator[str]:
    for family in spec.families:
        ip = f"ip -{family.value.version}"
        yield f"{ip} {PolicyRule(family).command}"
        yield f"{ip} {LocalRoute(family).command}"
    yield (
        f"where table {REPLY_TABLE} of a pod is somebody else's, the first free one of"
        f" {SPARE_TABLES[0]} to {SPARE_TABLES[-1]} takes its place"
    )
