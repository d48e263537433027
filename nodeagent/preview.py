"""``nodeagent rules``: what would be installed, as text for people and ``nft -f``."""

from collections.abc import Iterator, Sequence

from nodeagent.cluster.manifests import ManifestFolder
from nodeagent.config import Settings, require_manifests
from nodeagent.log import printable
from nodeagent.mesh.pod import Pod, PodUID
from nodeagent.redirect.intent import Intent
from nodeagent.redirect.nftables import render


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
    spec, warnings = Intent.from_settings(settings).of(pod)
    return "".join(f"# {printable(warning)}\n" for warning in warnings) + render(spec)
