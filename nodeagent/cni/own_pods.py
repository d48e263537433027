"""The agent's own pods, which its own plugin must never hold (L15)."""

import re
from dataclasses import dataclass

_SUFFIX = re.compile(r"[a-z0-9]{5}")
"""What a DaemonSet's controller appends to its name and a dash."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnPods:
    """Tells them by name, as the plugin's binary does where the agent cannot be reached."""

    namespace: str
    prefix: str
    """With the dash at its end."""

    def __contains__(self, pod: tuple[str, str]) -> bool:
        namespace, name = pod
        return (
            namespace == self.namespace
            and name.startswith(self.prefix)
            and _SUFFIX.fullmatch(name[len(self.prefix) :]) is not None
        )
