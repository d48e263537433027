"""Takes the plugin out of the node's CNI chain for good, and leaves what was there before."""

import base64
import contextlib
import errno
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass

from nodeagent.cni.install import confdir
from nodeagent.cni.install.conflist import OURS, entry_of
from nodeagent.cni.install.plan import undone
from nodeagent.linux.links import follow

_STATE = "var/lib/cni"
_CACHES = ("var/lib/cni/results", "var/lib/cni/cache/results")
"""Where libcni notes with which configuration a sandbox was made; the second before 0.8."""
_CILIUM = ".cilium_bak"
"""Cilium's ending for others' configurations: it may take it off again one day."""
_ATTEMPTS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What an uninstallation did."""

    restored: tuple[str, ...] = ()
    """Files of others, now without us."""
    removed: tuple[str, ...] = ()
    """Files of ours."""
    kept: str = ""
    """Why the binary stays (L18); empty: it was removed."""


def uninstall(net_dir: str, bin_dir: str, *, prefix: str = "") -> Report:
    """Take out what any agent of ours has put in. Idempotent; Istio's entries stay.

    The binary stays while sandboxes exist that were made with our plugin in their chain: each
    of them calls it once more, when it is deleted, and the binary lets that succeed without an
    agent. `prefix` is where the host's root is. Raises ``OSError`` that names what cannot be
    undone; the binary stays then too.
    """
    root = prefix or "/"
    net_dir, bin_dir = follow(net_dir, root).path, follow(bin_dir, root).path
    restored, removed, unreadable = _restore(net_dir)
    kept = unreadable or _in_use(prefix)
    if not kept:
        binary = os.path.join(bin_dir, OURS)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(binary)
            removed = (*removed, binary)
    for directory in (net_dir, bin_dir):
        with contextlib.suppress(FileNotFoundError):
            confdir.sweep(directory)
    return Report(restored=restored, removed=removed, kept=kept)


def _restore(net_dir: str) -> tuple[tuple[str, ...], tuple[str, ...], str]:
    for _ in range(_ATTEMPTS):
        with contextlib.suppress(confdir.MovedError):
            return _restore_once(net_dir)
    raise OSError(errno.EBUSY, f"{net_dir} is being written to all the time")


def _restore_once(net_dir: str) -> tuple[tuple[str, ...], tuple[str, ...], str]:
    """Names of the files that were restored, that were removed, and what could not be read."""
    try:
        found = confdir.read(net_dir, (*confdir.SUFFIXES, _CILIUM))
    except FileNotFoundError:
        return (), (), ""
    aside = {n.removesuffix(_CILIUM): d for n, d in found.files.items() if n.endswith(_CILIUM)}
    in_use = {n: d for n, d in found.files.items() if not n.endswith(_CILIUM)}
    changes = {**undone(in_use), **{name + _CILIUM: d for name, d in undone(aside).items()}}
    confdir.apply(net_dir, changes, found.files)
    return (
        tuple(sorted(name for name, data in changes.items() if data is not None)),
        tuple(sorted(name for name, data in changes.items() if data is None)),
        next((f"{name}: {why}" for name, why in sorted(found.unreadable.items())), ""),
    )


def _in_use(prefix: str) -> str:
    """Why the binary is still needed; empty if it is not. Raises ``OSError``."""
    if prefix and not os.path.isdir(os.path.join(prefix, _STATE)):
        return f"sandboxes that were made with it cannot be seen: /{_STATE} is not mounted"
    sandboxes = 0
    for cache in _CACHES:
        for path in _files(os.path.join(prefix or "/", cache)):
            with contextlib.suppress(FileNotFoundError):
                sandboxes += _made_with_us(confdir.content(path))
    return f"sandboxes that were made with it still exist: {sandboxes}" if sandboxes else ""


def _files(directory: str) -> Iterator[str]:
    with contextlib.suppress(FileNotFoundError), os.scandir(directory) as entries:
        yield from (entry.path for entry in entries if entry.is_file(follow_symlinks=False))


def _made_with_us(cached: bytes) -> bool:
    """Whether libcni's note of a sandbox (``cniCacheV1``) has our plugin in its chain."""
    try:
        note = json.loads(cached)
        return entry_of(base64.b64decode(note["config"])) is not None
    except (ValueError, KeyError, TypeError, RecursionError):
        return False
