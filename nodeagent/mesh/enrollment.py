"""What is done for one pod, step by step, from the top, until it holds.

Every step is idempotent and looks before it writes, so a run that was cut off
anywhere, even by SIGKILL, is simply made again.
"""

import asyncio
import time
from collections.abc import Iterable

import structlog

from nodeagent.mesh.dependencies import Dependencies, Inspection
from nodeagent.mesh.eligibility import RELEASED, Wanted
from nodeagent.mesh.errors import GiveUpError, RefusedError, RetryError, TransientError
from nodeagent.mesh.pod import SIDECAR_STATUS, Pod
from nodeagent.mesh.workload import N, Redirection, State, Workload

log = structlog.get_logger()

TEAR_DOWN = 5.0
"""Seconds that the runtime has to take a sandbox down, before a pod's next one is looked for."""


_LOOKS_FOR_LEFTOVERS = 5
"""Attempts for a pod of the first list of which nothing says that it was ever in the mesh."""


HEARD = 2.0
"""Seconds that the control plane and the peers' ztunnels have to hear of an annotation."""


class NetnsConflictError(RetryError):
    """The network namespace that was found for a pod is held for another one (L39)."""

    def __init__(self, netns: str, holder: Pod) -> None:
        # Whose it is goes to the log only: the detail may be shown to the pod's owner.
        super().__init__(f"the network namespace that was found, {netns}, is another pod's")
        self.netns = netns
        self.holder = holder


async def reconcile(row: Workload[N], parts: Dependencies[N], rows: Iterable[Workload[N]]) -> None:
    """Bring what stands on the node to what is wanted for the pod now.

    `rows` are all pods of the node: a network namespace is only ever one pod's.
    """
    if row.gone:
        parts.reporter.forget(row.uid)
        await _release(row, parts)
    elif row.decision.wanted is Wanted.YES:
        await _enroll(row, parts, rows)
    elif row.decision.wanted is Wanted.NO:
        await _remove(row, parts, rows)
    elif row.namespace is not None:
        # Not knowing is no reason to let a pod out of the mesh (L16).
        await _enroll(row, parts, rows)
    else:
        row.be(State.WAITING, row.decision.reason)


async def _enroll(row: Workload[N], parts: Dependencies[N], rows: Iterable[Workload[N]]) -> None:
    pod = row.pod
    if row.sandbox_ended is not None and await _between_sandboxes(row, parts):
        return
    if not pod.addresses and row.namespace is None:
        row.be(State.WAITING, "has no address yet")
        return
    if pod.addresses:  # an enrolled pod can lose them for a moment (L9)
        await _hold(row, pod, parts, rows)
    namespace = row.namespace
    assert namespace is not None  # noqa: S101 - tells mypy what the lines above made so
    look = await _redirect(row, pod, namespace, parts)
    served = row.accepted  # by the time of the look
    try:
        row.accepted = await parts.ztunnels.offer(pod, namespace) or row.accepted
    except RefusedError:
        row.accepted = False
        # Its probes do not need ztunnel, and must not fail with it.
        await parts.probes.ensure(pod)
        _annotate(row, parts)
        raise
    await parts.probes.ensure(pod)
    _annotate(row, parts)
    if not row.accepted:
        row.be(State.PENDING, "no ztunnel is connected")
    elif served and look.silent:
        ports = ", ".join(map(str, look.silent))
        row.be(State.UNSERVED, f"ztunnel does not listen on {ports}: traffic fails")
    else:
        row.be(State.ENROLLED, row.decision.reason)


async def _between_sandboxes(row: Workload[N], parts: Dependencies[N]) -> bool:
    """Whether the pod's sandbox is being taken down, and a look would find that one only."""
    pod, now = row.pod, asyncio.get_running_loop().time()
    assert row.sandbox_ended is not None  # noqa: S101 - tells mypy what the caller has checked
    if not pod.deleting and now - row.sandbox_ended >= TEAR_DOWN:
        # The next one may have come past the plugin, whose entry somebody took out (L3).
        row.sandbox_ended = None
        return False
    # The annotation stays: nothing is sent to a sandbox that has ended, and to the next one
    # peers would send plain text if it were not `enabled` (L41).
    await _release(row, parts)
    row.be(State.WAITING, "its sandbox was taken down; waits for the next")
    return True


async def _hold(
    row: Workload[N], pod: Pod, parts: Dependencies[N], rows: Iterable[Workload[N]]
) -> None:
    found = await _find(row, pod, parts, rows)
    if row.namespace is None or row.namespace is found:
        row.namespace = found
    elif found.id == row.namespace.id:
        found.close()
    else:
        # The sandbox was made again under the same UID. Nothing is sent of the
        # old namespace once the new one is here (L14).
        log.info("sandbox replaced", pod=str(pod), old=str(row.namespace.id), new=str(found.id))
        parts.ztunnels.reclaim(row.uid)
        row.let_go()
        row.namespace = found


async def _find(
    row: Workload[N], pod: Pod, parts: Dependencies[N], rows: Iterable[Workload[N]]
) -> N:
    """Find the pod's namespace; the caller owns it. Raises also ``NetnsConflictError``."""
    found = await parts.netns_finder.find(pod, _handed_over(row), row.namespace)
    if found is not row.namespace:
        try:
            _check_unclaimed(row, found, rows)
        except RetryError:
            found.close()
            raise
    return found


def _check_unclaimed(row: Workload[N], found: N, rows: Iterable[Workload[N]]) -> None:
    """Refuse a namespace that another pod's row holds open, so that it cannot be a newer one's."""
    for other in rows:
        if other is row or other.namespace is None or other.namespace.id != found.id:
            continue
        if other.gone or str(other.seen) == str(row.seen):
            # A static pod's sandbox outlives its mirror in the API, which is made anew.
            raise TransientError(f"{found.id} is not let go of yet by UID {other.uid}")
        raise NetnsConflictError(str(found.id), other.pod)


def _handed_over(row: Workload[N]) -> str | None:
    return row.sandbox.netns if row.sandbox else None


async def _redirect(row: Workload[N], pod: Pod, namespace: N, parts: Dependencies[N]) -> Inspection:
    if row.watch is None:
        row.watch = await parts.redirector.watch(namespace, row.uid)
    row.watch.arm()  # before the look: what changes during it is heard
    row.leaving_since = None
    # An upgrade may change rules that stand: such a pod was never without.
    slipped_by = row.slipped_by and row.sandbox is None
    slipped_by = slipped_by and not await parts.redirector.is_installed(namespace)
    look = await parts.redirector.ensure(namespace, pod)
    row.slipped_by = False
    if look.uncleaned and look.uncleaned != row.uncleaned:
        log.warning("leftovers stay in a pod", pod=str(pod), uid=pod.uid, reason=look.uncleaned)
    row.uncleaned = look.uncleaned
    if slipped_by:
        parts.reporter.unprotected(pod)
    differed = look.differed
    before = row.redirected
    if before is None:
        # ztunnel may have accepted this very namespace from a former agent. The
        # annotation alone does not say so: it outlives a reboot, the rules do not.
        row.accepted = not differed and row.reported is Redirection.ENABLED
    elif differed and before.annotations == pod.annotations:
        row.mended += 1
        log.warning("redirection mended", pod=str(pod), uid=pod.uid, differed=list(differed))
        if row.mended == row.contested_from:
            row.contested_from *= 2
            parts.reporter.contested(pod, row.mended)
    elif differed:
        log.info("redirection changed", pod=str(pod), uid=pod.uid, differed=list(differed))
    row.redirected, row.verified = pod, time.time()
    return look


async def _remove(row: Workload[N], parts: Dependencies[N], rows: Iterable[Workload[N]]) -> None:
    if row.namespace is None and row.existing:
        if row.reported is not None and not row.pod.addresses:
            row.be(State.WAITING, "has no address yet, by which rules that it had could be found")
            return
        await _survey(row, parts, rows)
    if row.namespace is not None and not await _free(row, row.namespace, parts):
        return
    row.existing = False  # first: from here on no snapshot names the pod
    await parts.ztunnels.withdraw(row.uid)
    _report(row, None, parts)
    if row.decision.reason == RELEASED:
        # Last: until its rules are gone, kubelet's probes of the pod need it.
        await parts.probes.remove(row.uid)
    row.let_go()
    row.be(State.OUTSIDE, row.decision.reason)


async def _goes_on(row: Workload[N], namespace: N, parts: Dependencies[N]) -> bool:
    """Whether connections through ztunnel are open, and may be for some time yet.

    At an uninstall also until peers had the time to hear that the pod leaves: what they
    send to ztunnel's port then would find nobody, and nobody would mend that.
    """
    # First of all: peers that are told in time send nothing new to ztunnel either.
    _report(row, None, parts)
    released = row.decision.reason == RELEASED
    if released and not parts.reporter.delivered(row.uid):
        raise TransientError("the API has not taken yet that the pod leaves the mesh")
    row.redirected = None
    left = await parts.redirector.release(namespace, row.pod)
    now = asyncio.get_running_loop().time()
    row.leaving_since = row.leaving_since or now
    waited = now - row.leaving_since
    if (left == 0 or waited >= parts.removal_grace) and (not released or waited >= HEARD):
        return False
    row.be(State.LEAVING, f"{row.decision.reason}; connections that are still open: {left}")
    return True


async def _free(row: Workload[N], namespace: N, parts: Dependencies[N]) -> bool:
    """Take the redirection out. Returns False where open connections are waited for first.

    Where nothing says that the pod was ever in the mesh, a look that fails is not an error
    for long: it is left as it is.
    """
    released = row.decision.reason == RELEASED
    try:
        if (parts.removal_grace or released) and await _goes_on(row, namespace, parts):
            return False
        if not released:
            await parts.probes.remove(row.uid)
        await parts.redirector.remove(namespace, row.pod)
    except RetryError as error:
        begun_here = row.watch is not None  # rules may stand, even if not all that was meant to
        if begun_here or row.was_annotated or row.attempts < _LOOKS_FOR_LEFTOVERS:
            raise
        log.info("not looked through for rules", pod=str(row.pod), uid=row.uid, reason=str(error))
    return True


async def _survey(row: Workload[N], parts: Dependencies[N], rows: Iterable[Workload[N]]) -> None:
    """Find a namespace in which a former agent may have left rules.

    Never that of a pod with a sidecar: it was in no mesh of ours since it was made (L30).
    """
    pod = row.pod
    if pod.host_network or pod.ended or SIDECAR_STATUS in pod.annotations:
        return
    try:
        row.namespace = await _find(row, pod, parts, rows)
    except GiveUpError:
        return
    except NetnsConflictError as error:
        parts.reporter.netns_conflict(pod, error.netns, error.holder)
    except RetryError:
        if row.reported is not None:
            raise


async def _release(row: Workload[N], parts: Dependencies[N]) -> None:
    await parts.probes.remove(row.uid)
    await parts.ztunnels.withdraw(row.uid)
    row.let_go()


def _annotate(row: Workload[N], parts: Dependencies[N]) -> None:
    """Say that the pod is redirected, and whether a ztunnel has ever accepted it.

    To a pod that is not `enabled` peers send plain text. So there is no way back from it
    while the pod is wanted: that its rules refuse what nobody serves is the lesser harm (L41).
    """
    enabled = row.accepted or row.promised or row.reported is Redirection.ENABLED
    _report(row, Redirection.ENABLED if enabled else Redirection.PENDING, parts)


def _report(row: Workload[N], redirection: Redirection | None, parts: Dependencies[N]) -> None:
    if row.reported is not redirection:
        parts.reporter.report(row.pod, redirection)
        row.reported = redirection
        row.promised = redirection is Redirection.ENABLED
