"""The backend that replays what libnftables once made of the same rules."""

from nodeagent.redirect import batch, standing
from nodeagent.redirect.rules import PodRedirect


class NftablesBackend:
    """See `nodeagent.redirect.backend.Backend`. All of a pod's rules are one transaction."""

    def __str__(self) -> str:
        return "nftables"

    def inspect(self, spec: PodRedirect) -> tuple[str, ...]:
        """See `Backend`."""
        return _differences(spec, standing.read())

    def ensure(self, spec: PodRedirect) -> tuple[str, ...]:
        """See `Backend`."""
        have = standing.read()
        found = _differences(spec, have)
        if found:
            batch.replace(have, standing.reference(spec))
        return found

    def stands(self) -> bool:
        """See `Backend`."""
        return bool(standing.read())

    def remove(self) -> bool:
        """See `Backend`."""
        have = standing.read()
        if have:
            batch.remove(have)
        return bool(have)


def _differences(spec: PodRedirect, have: standing.Tables) -> tuple[str, ...]:
    # A pod that was just made has none of our tables: nothing to compare with.
    if not have:
        return ("rules are missing",)
    return tuple(standing.differences(have, standing.reference(spec)))
