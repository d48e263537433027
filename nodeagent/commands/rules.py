"""``nodeagent rules``: what would be installed, as text for people and ``nft -f``."""

from collections.abc import Iterator, Sequence

from nodeagent.cluster.manifest_folder import ManifestFolder
from nodeagent.config import Settings, require_manifests
from nodeagent.log import printable
from nodeagent.mesh.pod import Pod, PodUID
from nodeagent.redirect.defaults import RedirectDefaults
from nodeagent.redirect.nft_rules import render
from nodeagent.redirect.routes import LocalRoute, PolicyRule
from nodeagent.redirect.rules import REPLY_TABLE, SPARE_TABLES, RedirectSpec


class UnknownPodError(Exception):
    """The manifests have no such pod."""


def rules(settings: Settings, pods: Sequence[str]) -> Iterator[str]:
    """Yield the rules of each of `pods` (``NAMESPACE/NAME``), or of one that asks for nothing.

    Raises ``SettingError``, ``UnknownPodError``, and ``OSError`` if the folder cannot be read.
    """
    if not pods:
        yield _text(settings, _NO_POD)
        return
    folder = require_manifests(settings)
    known = {str(pod): pod for pod in ManifestFolder(folder).pods()}
    for name in pods:
        if name not in known:
            raise UnknownPodError(f"there is no pod {name} in {folder}")
        yield f"# pod {name}\n{_text(settings, known[name])}"


_NO_POD = Pod(uid=PodUID(""), name="", namespace="")


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
