"""Which files of the CNI configuration directory the container runtime loads."""

import contextlib
import json
from dataclasses import dataclass
from typing import Any

_ONE_NETWORK = ("cri-o", "docker")
"""Runtimes (as they name themselves; cri-dockerd is "docker") that give each pod one network,
the first valid one, and pass over files that are not valid."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loading:
    """What a runtime makes of the directory's files, in the order of their names."""

    most: int | None = None
    """How many files the runtime loads, each for an interface of every pod; 0: all of them;
    None: that is not known."""
    tolerant: bool = False
    """The runtime passes over files that are not valid; otherwise it loads nothing where one
    comes first."""
    conf_dir: str = ""
    """Directory of the configurations, as a path of the host; empty: not known."""
    bin_dirs: tuple[str, ...] = ()
    """Directories of the plugins' binaries, as paths of the host; empty: not known."""
    source: str = "nobody was asked"
    """The runtime, for people; or why nothing is known."""


UNKNOWN = Loading()


async def ask(*, endpoint: str, prefix: str) -> Loading:
    """Ask the container runtime at the socket with path `endpoint`.

    An empty one is the first of the usual ones that is there, below `prefix`, where the
    host's root is. Where nobody answers, `Loading.source` says why.
    """
    from nodeagent.netns.cri import (  # noqa: PLC0415 - gRPC takes 9 MiB
        ContainerRuntime,
        RuntimeUnavailableError,
    )

    runtime = ContainerRuntime(endpoint=endpoint, prefix=prefix)
    try:
        version = await runtime.version()
        who = f"{version.name} {version.version}"
        if version.name in _ONE_NETWORK:
            return Loading(most=1, tolerant=True, source=who)
        return loading_of((await runtime.info()).get("cniconfig", ""), who)
    except RuntimeUnavailableError as error:
        return Loading(source=f"{error}; set CONTAINER_RUNTIME_ENDPOINT")
    finally:
        await runtime.close()


def loading_of(cniconfig: str, who: str) -> Loading:
    """Read what containerd says of its CNI configuration under that key of its status."""
    with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
        told: Any = json.loads(cniconfig)
        most, conf_dir, bin_dirs = (
            told["PluginMaxConfNum"],
            told["PluginConfDir"],
            told["PluginDirs"],
        )
        if isinstance(most, int) and isinstance(conf_dir, str) and isinstance(bin_dirs, list):
            # Less than nothing is no limit either.
            return Loading(
                most=max(most, 0),
                conf_dir=conf_dir,
                bin_dirs=tuple(each for each in bin_dirs if isinstance(each, str)),
                source=who,
            )
    return Loading(source=f"{who} does not tell")
