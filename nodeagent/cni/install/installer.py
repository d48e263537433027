"""Keeps our plugin in the node's CNI chain for as long as the agent runs."""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import structlog

from nodeagent.cni.directory import Directory, types_of
from nodeagent.cni.install import confdir
from nodeagent.cni.install.binary import Binary, NoBinaryError
from nodeagent.cni.install.conflist import OURS, Entry, entry_of
from nodeagent.cni.install.loading import Loading
from nodeagent.cni.install.plan import (
    NoPrimaryError,
    NotYetError,
    Placement,
    Plan,
    alike,
    newest,
    plan,
    primary_of_copy,
    stamped,
)
from nodeagent.cni.install.reverting import Brake, suspect
from nodeagent.linux.directory_watch import FolderLostError, FolderWatch
from nodeagent.linux.links import follow

log = structlog.get_logger()

GRACE = 5.0
"""Seconds for which a primary configuration may be gone: some are rewritten by deleting them."""
OVERLAP = 60.0
"""Seconds for which an agent leaves a later agent's entry alone; usually it is gone by then."""
ASK_AGAIN, ASK_SOON = 60.0, 5.0
"""Seconds until the container runtime is asked again; the second where it did not answer."""
_RETRY = 1.0
_SETTLE = 0.02
"""Seconds in which what one writer does to several files comes together."""


@dataclass(frozen=True, slots=True)
class _Look:
    """What came of looking at the directories once."""

    stands: bool
    again_in: float | None = None
    """Seconds until something is due though nothing changes."""
    failed: bool = False
    """What changes meanwhile may be our own attempt: it must not bring about the next."""


class Installer:
    """Puts binary and entry in their places, and back whenever somebody takes them away.

    Our own file is a copy of the primary's that sorts before it. It goes when the primary
    has been gone for ``GRACE``: the node must not look ready with a network that nobody
    runs any more; until then a runtime reads on in our copy. Where `placement` has none,
    the entry is put into the primary; likewise where `loading`, which asks the container
    runtime, does not tell that a copy leaves pods their network. Not chained, it has a
    configuration of its own that only a delegating plugin (Multus) uses.

    Two agents may run at once while one replaces the other: what they would write alike
    neither writes again, and for what differs the later agent's counts.

    It leaves everything where it is when it is cancelled (L17); `uninstall` takes it out.
    `root`: where the host's root is, below which links lead.
    """

    def __init__(
        self,
        *,
        net_dir: str,
        bin_dir: str,
        entry: Entry,
        placement: Placement,
        binary_source: str,
        loading: Callable[[], Awaitable[Loading]],
        root: str = "/",
    ) -> None:
        self.installed = asyncio.Event()
        """Set once binary and configuration are in place."""
        self._net_path, self._bin_path, self._root = net_dir, bin_dir, root
        self._net_dir, self._bin_dir = net_dir, bin_dir
        """Where the paths lead; links are followed anew with each look."""
        self._bare_entry = entry
        self._placement = placement
        self._source = binary_source
        self._ask = loading
        self._at = datetime.now(UTC).isoformat(timespec="microseconds")
        self._stirred = asyncio.Event()
        self._brake = Brake()
        self._problems: dict[str, str] = {}
        self._invalid: dict[str, str] = {}
        self._no_own_file = ""
        self._stood = False
        self._gone_since: float | None = None
        self._yielded: tuple[str, float] | None = None

    async def run(self) -> None:
        """Install, and keep it so, for ever. What stands in the way is said once, and retried."""
        async with asyncio.TaskGroup() as tasks:
            if self._placement.chained and self._placement.own_file is not None:
                await self._hear()
                tasks.create_task(self._keep_asking(), name="ask the container runtime")
            for path in sorted({self._net_path, self._bin_path}):
                tasks.create_task(self._watch(path), name=f"watch {path}")
            while True:
                self._stirred.clear()
                look = await _finished(asyncio.to_thread(self._look))
                if look.stands:
                    self.installed.set()
                await self._until_due(look.again_in, deaf=look.failed)

    async def _keep_asking(self) -> None:
        while True:
            known = self._placement.loading.most is not None
            await asyncio.sleep(ASK_AGAIN if known else ASK_SOON)
            if await self._hear():
                self._stirred.set()

    async def _hear(self) -> bool:
        """Ask the container runtime; whether its answer is another than before."""
        before, told = self._placement.loading, await self._ask()
        if told.most is None and before.most is not None:
            return False  # it restarts, and what it said holds
        self._placement = replace(self._placement, loading=told)
        return told != before

    async def _until_due(self, due: float | None, *, deaf: bool) -> None:
        """Wait for `due` seconds, or for news unless `deaf`."""
        if deaf and due is not None:
            await asyncio.sleep(due)
            return
        try:
            async with asyncio.timeout(due):
                await self._stirred.wait()
        except TimeoutError:
            return
        await asyncio.sleep(_SETTLE)

    async def _watch(self, path: str) -> None:
        while True:
            try:
                with FolderWatch(path, self._root) as watch:
                    self._solved(f"watch {path}")
                    while True:
                        self._stirred.set()
                        await watch.changed()
            except (FileNotFoundError, NotADirectoryError):
                pass  # whoever looks there says so
            except FolderLostError:
                self._stirred.set()
                continue
            except OSError as error:
                self._problem(f"watch {path}", f"{path} cannot be watched: {error.strerror}")
            await asyncio.sleep(_RETRY)
            self._stirred.set()

    def _look(self) -> _Look:
        """Compare with what should be, and repair it. In a thread: disks are slow."""
        try:
            self._net_dir = follow(self._net_path, self._root).path
            self._bin_dir = follow(self._bin_path, self._root).path
            binary = Binary.load(self._source)
            entry = stamped(self._bare_entry, at=self._at, binary=binary.digest)
            look = self._mend(binary, entry)
        except confdir.MovedError:
            return _Look(stands=False, again_in=0)
        except (NoBinaryError, NotYetError) as error:
            self._problem("install", str(error))
            return _Look(stands=False, again_in=_RETRY)
        except OSError as error:
            self._problem("install", _told(error))
            return _Look(stands=False, again_in=_RETRY, failed=True)
        if look.stands:
            self._solved("install")
        return look

    def _mend(self, binary: Binary, entry: Entry) -> _Look:
        now = time.monotonic()
        executable = binary.stands(self._bin_dir)
        found = confdir.read(self._net_dir)
        self._say_invalid(found)
        wanted, grace = self._planned(found, entry, now)
        if wanted is None:
            return _Look(stands=self._stood, again_in=grace)
        self._say_no_own_file(wanted.no_own_file)
        if executable and not wanted.changes:
            self._stood = True
            return _Look(stands=True)
        wait = max(self._brake.wait(now), self._yields(found, entry, now))
        if self._stood and wait:
            return _Look(stands=False, again_in=wait)
        undone = _undone(found, wanted, entry, executable=executable)
        confdir.sweep(self._net_dir)
        confdir.sweep(self._bin_dir)
        if not executable:
            binary.install(self._bin_dir)
        confdir.apply(self._net_dir, wanted.changes, found.files)
        self._say_done(found, wanted, undone, now)
        self._stood = True
        return _Look(stands=True)

    def _planned(
        self, found: Directory, entry: Entry, now: float
    ) -> tuple[Plan | None, float | None]:
        """What to do, or None and for how long our copy of a primary that is gone stays."""
        own = self._placement.own_file if self._placement.chained else None
        last = primary_of_copy(found, own) if own is not None else ""
        missing: NoPrimaryError | None = None
        wanted: Plan | None = None
        try:
            wanted = plan(found, self._placement, entry)
        except NoPrimaryError as error:
            missing = error
        alive = not last or (last in found.files and last not in found.invalid())
        if alive or (wanted is not None and wanted.primary < last):
            self._gone_since = None
        else:
            self._gone_since = now if self._gone_since is None else self._gone_since
            if now - self._gone_since < GRACE:
                return None, self._gone_since + GRACE - now
        if missing is None:
            return wanted, None
        if own is not None and last and not alive:
            confdir.apply(self._net_dir, {own: None}, found.files)
            log.warning("the primary cni configuration is gone, and ours goes too", primary=last)
        raise missing

    def _yields(self, found: Directory, entry: Entry, now: float) -> float:
        """Seconds for which a later agent's entry is left alone."""
        newer = newest(found.files, entry)
        if newer <= self._at:
            self._yielded = None
            return 0.0
        if self._yielded is None or self._yielded[0] != newer:
            self._yielded = newer, now + OVERLAP
            log.info("another agent that started later has installed its cni entry", at=newer)
        return max(0.0, self._yielded[1] - now)

    def _say_done(self, found: Directory, wanted: Plan, undone: str, now: float) -> None:
        where = {"file": wanted.target, "primary": wanted.primary}
        if wanted.taken_over:
            log.warning("istio-cni's entry is taken over in the cni chain", **where)
        if not self._stood:
            log.info("cni plugin installed", **where)
        elif not undone:
            self._brake.wrote(now)
            log.info("our cni configuration follows the primary", **where)
        else:
            log.warning("cni plugin put back", undone=undone, **where)
            if self._brake.repaired(now):
                log.error(
                    "somebody keeps undoing the cni installation; repairs become less frequent",
                    undone=undone,
                    looks_like=self._suspect(found, wanted) or "nobody known",
                    **where,
                )

    def _suspect(self, found: Directory, wanted: Plan) -> str:
        own_file = wanted.target != wanted.primary
        traces = confdir.names(self._net_dir)
        if own_file:
            traces = [name for name in traces if name != wanted.target]
        for name, data in found.files.items():
            if name != wanted.target or not own_file:
                traces += types_of(name, data)
        return suspect(traces, own_file=own_file)

    def _say_no_own_file(self, reason: str) -> None:
        if reason and reason != self._no_own_file:
            # Only where the runtime cannot be asked there is something to be done about it.
            unknown = self._placement.loading.most is None
            (log.warning if unknown else log.info)(
                "our cni entry goes into the primary's own file, as with"
                " ISTIO_OWNED_CNI_CONFIG=false",
                reason=reason,
            )
        self._no_own_file = reason

    def _say_invalid(self, found: Directory) -> None:
        invalid = found.invalid()
        for name, reason in invalid.items():
            if self._invalid.get(name) != reason:
                log.warning("cni configuration passed over", file=name, reason=reason)
        self._invalid = invalid

    def _problem(self, subject: str, text: str) -> None:
        if self._problems.get(subject) != text:
            log.warning("cni plugin cannot be installed yet", reason=text)
        self._problems[subject] = text

    def _solved(self, subject: str) -> None:
        self._problems.pop(subject, None)


async def _finished(looking: Awaitable[_Look]) -> _Look:
    """Wait for it even when cancelled: what comes after must not meet it at work."""
    task = asyncio.ensure_future(looking)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


def _told(error: OSError) -> str:
    if not error.filename:
        return str(error.strerror)
    denied = isinstance(error, PermissionError)
    owner = confdir.whose(os.path.dirname(error.filename)) if denied else ""
    return f"{error.filename}: {error.strerror}{owner}"


def _undone(found: Directory, wanted: Plan, entry: Entry, *, executable: bool) -> str:
    """What somebody has undone, in words; empty: nothing, but the primary has changed."""
    if not executable:
        return f"the binary {OURS} was deleted or changed"
    standing = found.files.get(wanted.target)
    ours = entry_of(standing) if standing is not None else None
    if ours is None:
        if any(entry_of(data) for data in found.files.values()):
            return ""  # it moves here from another file
        what = "was deleted" if standing is None else "has lost our entry"
        return f"{wanted.target} {what}"
    if wanted.target != wanted.primary and wanted.changes.get(wanted.primary, b"") is None:
        return f"{wanted.primary} was written again beside {wanted.target}"
    if not alike(ours, entry):
        return f"our entry in {wanted.target} was changed"
    return ""
