"""One pass over the CNI directories: what differs from what should be there is written.

A pass reads the directories (`confdir`), has the changes decided (`plan`), and writes them.
Between the two it may hold back: for a primary that is gone for a moment, for an agent that
started later than this one, and for somebody who keeps undoing our repairs. Everything here
blocks, for disks are slow, and runs in a thread.
"""

import os
import time
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog

from nodeagent.cni.install import confdir
from nodeagent.cni.install.binary import Binary, NoBinaryError
from nodeagent.cni.install.conflist import OURS, Entry, entry_of
from nodeagent.cni.install.directory import Directory, types_of
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
from nodeagent.cni.install.reverting import RepairThrottle, likely_cause
from nodeagent.linux.links import follow

log = structlog.get_logger()

GRACE = 5.0
"""Seconds for which a primary configuration may be gone: some are rewritten by deleting them."""
OVERLAP = 60.0
"""Seconds for which an agent leaves a later agent's entry alone; usually it is gone by then."""
_RETRY = 1.0


@dataclass(frozen=True, slots=True)
class PassResult:
    """What came of going over the directories once."""

    installed: bool
    again_in: float | None = None
    """Seconds until something is due though nothing changes."""
    failed: bool = False
    """What changes meanwhile may be our own attempt: it must not bring about the next."""


class Problems:
    """What keeps the plugin from being installed, each said once."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}

    def met(self, subject: str, reason: str) -> None:
        """Log `reason`, unless it is the last that was said of `subject`."""
        if self._known.get(subject) != reason:
            log.warning("cni plugin cannot be installed yet", reason=reason)
        self._known[subject] = reason

    def solved(self, subject: str) -> None:
        """Forget what was said of `subject`."""
        self._known.pop(subject, None)


class Repairer:
    """Brings binary and configuration to what they should be.

    Our own file is a copy of the primary's that sorts before it. The copy goes when the
    primary has been gone for ``GRACE``: the node must not look ready with a network that
    nobody runs any more; until then a runtime reads on in our copy. Where the placement has
    no own file, the entry is put into the primary; likewise where the container runtime does
    not tell that a copy leaves pods their network. Not chained, the entry has a configuration
    of its own that only a delegating plugin (Multus) uses.

    Two agents may run at once while one replaces the other: what they would write alike
    neither writes again, and for what differs the later agent's counts.
    """

    def __init__(
        self,
        *,
        net_dir: str,
        bin_dir: str,
        entry: Entry,
        binary_source: str,
        root: str = "/",
        group_read: bool = False,
    ) -> None:
        """`root`: where the host's root is, below which links lead.

        `group_read`: what is written can be read by the file's group too.
        """
        self.problems = Problems()
        self.root = root
        self._net_path, self._bin_path = net_dir, bin_dir
        self._net_dir, self._bin_dir = net_dir, bin_dir
        """Where the paths lead; links are followed anew in each pass."""
        self._bare_entry = entry
        self._source = binary_source
        self._mode = 0o640 if group_read else 0o600
        self._started = datetime.now(UTC).isoformat(timespec="microseconds")
        self._throttle = RepairThrottle()
        self._invalid: dict[str, str] = {}
        self._no_own_file = ""
        self._was_installed = False
        self._gone_since: float | None = None
        self._yielded: tuple[str, float] | None = None

    @property
    def directories(self) -> list[str]:
        """Paths of the directories that are gone over."""
        return sorted({self._net_path, self._bin_path})

    def go_over(self, placement: Placement) -> PassResult:
        """Compare with what should be, and repair it; what is in the way is logged once."""
        try:
            self._net_dir = follow(self._net_path, self.root).path
            self._bin_dir = follow(self._bin_path, self.root).path
            binary = Binary.load(self._source)
            entry = stamped(self._bare_entry, at=self._started, binary=binary.digest)
            result = self._repair(binary, entry, placement)
        except confdir.MovedError:
            return PassResult(installed=False, again_in=0)
        except (NoBinaryError, NotYetError) as error:
            self.problems.met("install", str(error))
            return PassResult(installed=False, again_in=_RETRY)
        except OSError as error:
            self.problems.met("install", _told(error))
            return PassResult(installed=False, again_in=_RETRY, failed=True)
        if result.installed:
            self.problems.solved("install")
        return result

    def _repair(self, binary: Binary, entry: Entry, placement: Placement) -> PassResult:
        now = time.monotonic()
        executable = binary.is_installed(self._bin_dir)
        found = confdir.read(self._net_dir)
        self._warn_of_invalid(found)
        wanted, grace = self._plan_or_wait(found, entry, placement, now)
        if wanted is None:
            return PassResult(installed=self._was_installed, again_in=grace)
        self._tell_why_not_own_file(wanted.no_own_file, placement)
        if executable and not wanted.changes:
            self._was_installed = True
            return PassResult(installed=True)
        wait = max(self._throttle.wait(now), self._yields(found, entry, now))
        if self._was_installed and wait:
            return PassResult(installed=False, again_in=wait)
        undone = _undone(found, wanted, entry, executable=executable)
        confdir.sweep(self._net_dir)
        confdir.sweep(self._bin_dir)
        if not executable:
            binary.install(self._bin_dir)
        confdir.apply(self._net_dir, wanted.changes, found.files, least_mode=self._mode)
        self._report(found, wanted, undone, now)
        self._was_installed = True
        return PassResult(installed=True)

    def _plan_or_wait(
        self, found: Directory, entry: Entry, placement: Placement, now: float
    ) -> tuple[Plan | None, float | None]:
        """Return the plan; or None, and the seconds for which to wait for the primary.

        While the primary is gone and ``GRACE`` is not over, our copy of it stays as it is: its
        owner may be about to write it anew. Raises ``NotYetError``.
        """
        own = placement.own_file if placement.chained else None
        copied = primary_of_copy(found, own) if own is not None else ""
        missing: NoPrimaryError | None = None
        wanted: Plan | None = None
        try:
            wanted = plan(found, placement, entry)
        except NoPrimaryError as error:
            missing = error
        alive = not copied or (copied in found.files and copied not in found.invalid())
        if alive or (wanted is not None and wanted.primary < copied):
            self._gone_since = None
        else:
            self._gone_since = now if self._gone_since is None else self._gone_since
            if now - self._gone_since < GRACE:
                return None, self._gone_since + GRACE - now
        if missing is None:
            return wanted, None
        if own is not None and copied and not alive:
            confdir.apply(self._net_dir, {own: None}, found.files)
            log.warning("the primary cni configuration is gone, and ours goes too", primary=copied)
        raise missing

    def _yields(self, found: Directory, entry: Entry, now: float) -> float:
        """Seconds for which a later agent's entry is left alone."""
        newer = newest(found.files, entry)
        if newer <= self._started:
            self._yielded = None
            return 0.0
        if self._yielded is None or self._yielded[0] != newer:
            self._yielded = newer, now + OVERLAP
            log.info("another agent that started later has installed its cni entry", at=newer)
        return max(0.0, self._yielded[1] - now)

    def _report(self, found: Directory, wanted: Plan, undone: str, now: float) -> None:
        where = {"file": wanted.target, "primary": wanted.primary}
        if wanted.taken_over:
            log.warning("istio-cni's entry is taken over in the cni chain", **where)
        if not self._was_installed:
            log.info("cni plugin installed", **where)
        elif not undone:
            self._throttle.wrote(now)
            log.info("our cni configuration follows the primary", **where)
        else:
            log.warning("cni plugin put back", undone=undone, **where)
            if self._throttle.repaired(now):
                log.error(
                    "somebody keeps undoing the cni installation; repairs become less frequent",
                    undone=undone,
                    likely_cause=self._likely_cause(found, wanted) or "nobody known",
                    **where,
                )

    def _likely_cause(self, found: Directory, wanted: Plan) -> str:
        own_file = wanted.target != wanted.primary
        traces = confdir.names(self._net_dir)
        if own_file:
            traces = [name for name in traces if name != wanted.target]
        for name, data in found.files.items():
            if name != wanted.target or not own_file:
                traces += types_of(name, data)
        return likely_cause(traces, own_file=own_file)

    def _tell_why_not_own_file(self, reason: str, placement: Placement) -> None:
        if reason and reason != self._no_own_file:
            # Only where the runtime cannot be asked there is something to be done about it.
            unknown = placement.loading.most is None
            (log.warning if unknown else log.info)(
                "our cni entry goes into the primary's own file, as with"
                " ISTIO_OWNED_CNI_CONFIG=false",
                reason=reason,
            )
        self._no_own_file = reason

    def _warn_of_invalid(self, found: Directory) -> None:
        invalid = found.invalid()
        for name, reason in invalid.items():
            if self._invalid.get(name) != reason:
                log.warning("cni configuration passed over", file=name, reason=reason)
        self._invalid = invalid


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
    installed = found.files.get(wanted.target)
    ours = entry_of(installed) if installed is not None else None
    if ours is None:
        if any(entry_of(data) for data in found.files.values()):
            return ""  # it moves here from another file
        what = "was deleted" if installed is None else "has lost our entry"
        return f"{wanted.target} {what}"
    if wanted.target != wanted.primary and wanted.changes.get(wanted.primary, b"") is None:
        return f"{wanted.primary} was written again beside {wanted.target}"
    if not alike(ours, entry):
        return f"our entry in {wanted.target} was changed"
    return ""
