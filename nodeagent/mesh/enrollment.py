"""The steps that bring one pod into the mesh, keep it there, or take it out.

`reconcile` runs them from the top. Each step looks before it writes and can be repeated, so
a run that was cut off anywhere, even by SIGKILL, is simply made again: there is no other
code for an agent that was restarted or a label that was added. The exception that a step
raises decides what comes next (`errors.py`); `worker.py` carries that out.
"""

import asyncio
import time

import structlog

from nodeagent.mesh.annotation import Redirection
from nodeagent.mesh.clock import EnrollmentClock
from nodeagent.mesh.dependencies import Dependencies, Inspection
from nodeagent.mesh.eligibility import RELEASED, Wanted
from nodeagent.mesh.errors import (
    GiveUpError,
    NetnsConflictError,
    RefusedError,
    RetryError,
    TransientError,
)
from nodeagent.mesh.held import HeldNetns, N
from nodeagent.mesh.pod import SIDECAR_STATUS, Pod
from nodeagent.mesh.progress import State
from nodeagent.mesh.table import Table
from nodeagent.mesh.workload import Workload
from nodeagent.observer import Phase, Way

log = structlog.get_logger()

SANDBOX_TEARDOWN = 5.0
"""Seconds that the runtime has to take a sandbox down, before a pod's next one is looked for."""
ANNOTATION_PROPAGATION = 2.0
"""Seconds that the control plane and the peers' ztunnels have to hear of an annotation."""
_ATTEMPTS_FOR_LEFTOVERS = 5
"""Attempts to clean a pod that was there at the start, where nothing says that it was ever in
the mesh."""
FIRST_CONTESTED = 5
"""Repairs of one pod after which it is reported as contested; then after twice as many, and
so on."""


async def reconcile(workload: Workload[N], needs: Dependencies[N], table: Table[N]) -> None:
    """Bring what is there on the node to what is wanted for the pod now.

    Raises ``RetryError`` where another try can help, and ``GiveUpError`` where none can.
    """
    if workload.gone:
        needs.reporter.forget(workload.uid)
        await _release(workload, needs)
    elif workload.decision.wanted is Wanted.YES:
        await _enroll(workload, needs, table)
    elif workload.decision.wanted is Wanted.NO:
        await _remove(workload, needs, table)
    elif workload.held is not None:
        # Not to know whether a pod is wanted is no reason to take it out of the mesh.
        await _enroll(workload, needs, table)
    else:
        workload.progress.set_state(State.WAITING, workload.decision.reason)


# Into the mesh


async def _enroll(workload: Workload[N], needs: Dependencies[N], table: Table[N]) -> None:
    pod, progress = workload.pod, workload.progress
    if workload.sandbox_ended is not None and await _waits_for_sandbox(workload, needs, table):
        return
    if not pod.addresses and progress.held is None:
        progress.set_state(State.WAITING, "has no address yet")
        return
    if progress.clock is None:
        progress.clock = EnrollmentClock(_way_in(workload), workload.heard)
    if pod.addresses:  # an enrolled pod can lose them for a moment
        await _open_netns(workload, pod, needs, table)
    held, clock = progress.held, progress.clock
    assert held is not None  # noqa: S101 - tells mypy what the lines above made so
    clock.reached(Phase.FOUND, needs.observer)
    unwatched = await _watch(workload, held, needs)
    inspection = await _redirect(workload, pod, held, needs)
    clock.reached(Phase.REDIRECTED, needs.observer)
    served = held.accepted  # by the time of the inspection
    try:
        held.accepted = await needs.ztunnels.offer(pod, held.netns) or held.accepted
    except RefusedError:
        held.accepted = False
        # The pod's probes do not need ztunnel, and must not fail with it.
        await needs.probes.ensure(pod)
        _annotate(workload, held, needs)
        raise
    await needs.probes.ensure(pod)
    _annotate(workload, held, needs)
    if held.accepted:
        clock.reached(Phase.ACCEPTED, needs.observer)
    if not held.accepted:
        progress.set_state(State.PENDING, "no ztunnel is connected")
    elif served and inspection.silent:
        ports = ", ".join(map(str, inspection.silent))
        progress.set_state(State.UNSERVED, f"ztunnel does not listen on {ports}: traffic fails")
    else:
        progress.set_state(State.ENROLLED, workload.decision.reason)
        clock.complete(needs.observer)
    if unwatched is not None:
        raise unwatched


async def _watch(
    workload: Workload[N], held: HeldNetns[N], needs: Dependencies[N]
) -> RetryError | None:
    """Hear of what changes in the netns from now on; return why that cannot be.

    The error is for the end of the attempt: what protects a pod does not wait for what
    watches it.
    """
    try:
        if held.watch is None:
            held.watch = await needs.redirector.watch(held.netns, workload.uid)
    except RetryError as error:
        return error
    held.watch.arm()  # before the inspection: what changes during it is heard
    return None


def _way_in(workload: Workload[N]) -> Way:
    if workload.sandbox is not None:
        return Way.CNI
    return Way.START if workload.existing else Way.WATCH


async def _waits_for_sandbox(
    workload: Workload[N], needs: Dependencies[N], table: Table[N]
) -> bool:
    """Release the sandbox that ends; return whether the next one is still waited for."""
    now = asyncio.get_running_loop().time()
    assert workload.sandbox_ended is not None  # noqa: S101 - the caller has checked it
    if not workload.pod.deleting and now - workload.sandbox_ended >= SANDBOX_TEARDOWN:
        # Somebody may have removed the plugin's entry from the CNI configuration. Then the
        # next sandbox is there by now, and nobody has handed it over.
        table.expect_sandbox(workload)
        return False
    # The annotation stays: nothing is sent to a sandbox that has ended, and to the next one
    # peers would send plain text if the pod were not `enabled`.
    await _release(workload, needs)
    workload.progress.set_state(State.WAITING, "its sandbox was taken down; waits for the next")
    return True


async def _open_netns(
    workload: Workload[N], pod: Pod, needs: Dependencies[N], table: Table[N]
) -> None:
    progress = workload.progress
    found = await _find_netns(workload, pod, needs, table)
    if progress.held is None:
        progress.held = HeldNetns(found)
    elif found.id == progress.held.netns.id:
        if found is not progress.held.netns:
            found.close()
    else:
        # The runtime has made the sandbox of the same pod again. Nothing of the old netns is
        # sent to ztunnel once the new one is here.
        old = str(progress.held.netns.id)
        log.info("sandbox replaced", pod=str(pod), old=old, new=str(found.id))
        progress.history.note("sandbox replaced", f"{old} before, {found.id} now")
        needs.ztunnels.reclaim(workload.uid)
        progress.release_netns()
        progress.clock = EnrollmentClock(_way_in(workload), workload.heard)
        progress.held = HeldNetns(found)


async def _find_netns(
    workload: Workload[N], pod: Pod, needs: Dependencies[N], table: Table[N]
) -> N:
    """Find the pod's netns; the caller owns it. Raises also ``NetnsConflictError``."""
    handed_over = workload.sandbox.netns if workload.sandbox else None
    found = await needs.netns_finder.find(pod, handed_over, workload.netns)
    if found is not workload.netns:
        try:
            _check_unclaimed(workload, found, table)
        except RetryError:
            found.close()
            raise
    return found


def _check_unclaimed(workload: Workload[N], found: N, table: Table[N]) -> None:
    """Refuse a netns that another workload holds open: while it is open, no other has its id."""
    for other in table:
        if other is workload or other.netns is None or other.netns.id != found.id:
            continue
        if other.gone or str(other.seen) == str(workload.seen):
            # A static pod's sandbox outlives its mirror in the API, which is made anew.
            raise TransientError(f"{found.id} is not released yet by UID {other.uid}")
        raise NetnsConflictError(str(found.id), other.pod)


async def _redirect(
    workload: Workload[N], pod: Pod, held: HeldNetns[N], needs: Dependencies[N]
) -> Inspection:
    progress = workload.progress
    held.draining_since = None
    unprotected = (
        workload.ran_unprotected
        and not progress.was_redirected
        and workload.sandbox is None
        # An upgrade may change rules that are installed: such a pod was never without.
        and not await needs.redirector.is_installed(held.netns)
    )
    try:
        inspection = await needs.redirector.ensure(held.netns, pod)
    except RetryError:
        held.lost_since = held.lost_since or time.monotonic()
        raise
    held.lost_since = None
    progress.was_redirected = True
    if inspection.uncleaned and inspection.uncleaned != held.uncleaned:
        reason = inspection.uncleaned
        log.warning("leftovers stay in a pod", pod=str(pod), uid=pod.uid, reason=reason)
    held.uncleaned = inspection.uncleaned
    if unprotected:
        needs.reporter.unprotected(pod)
        if progress.clock is not None:
            needs.observer.ran_unprotected(time.monotonic() - progress.clock.began)
    if held.installed_for is None:
        # ztunnel may have accepted this very netns from an earlier agent. The annotation
        # alone does not say so: it outlives a reboot of the node, the rules do not.
        reported_enabled = workload.annotation.value is Redirection.ENABLED
        held.accepted = reported_enabled and not inspection.differed
    elif inspection.differed:
        asked_for = held.installed_for.annotations != pod.annotations
        _note_change(workload, pod, inspection.differed, needs, asked_for=asked_for)
    held.installed_for, held.verified = pod, time.time()
    return inspection


def _note_change(
    workload: Workload[N],
    pod: Pod,
    differed: tuple[str, ...],
    needs: Dependencies[N],
    *,
    asked_for: bool,
) -> None:
    """Log what was changed in a redirected pod: at the pod's own wish, or as a repair."""
    if asked_for:
        log.info("redirection changed", pod=str(pod), uid=pod.uid, differed=list(differed))
        return
    workload.progress.repairs += 1
    needs.observer.pod_repaired()
    repairs = workload.progress.repairs
    workload.progress.history.note("repaired", "; ".join(differed))
    log.warning("redirection repaired", pod=str(pod), uid=pod.uid, differed=list(differed))
    if _is_contested(repairs):
        needs.reporter.contested(pod, repairs)


def _is_contested(repairs: int) -> bool:
    """Whether so many repairs are to be reported: 5, 10, 20, 40 and so on."""
    times, rest = divmod(repairs, FIRST_CONTESTED)
    return rest == 0 and times.bit_count() == 1


def _annotate(workload: Workload[N], held: HeldNetns[N], needs: Dependencies[N]) -> None:
    """Report that the pod is redirected, and whether a ztunnel has ever accepted it.

    Peers send plain text to a pod that is not `enabled`, and a redirected pod refuses that.
    So while the pod is wanted, `enabled` is never taken back: that the pod cannot be
    reached while nobody serves it is the lesser harm.
    """
    enabled = held.accepted or workload.annotation.says_enabled
    _report(workload, Redirection.ENABLED if enabled else Redirection.PENDING, needs)


# Out of the mesh


async def _remove(workload: Workload[N], needs: Dependencies[N], table: Table[N]) -> None:
    progress = workload.progress
    if progress.held is None and workload.existing and not progress.known_outside:
        if workload.annotation.value is not None and not workload.pod.addresses:
            progress.set_state(
                State.WAITING, "has no address yet, by which rules that it had could be found"
            )
            return
        await _find_leftovers(workload, needs, table)
    if progress.held is not None and not await _remove_redirection(workload, progress.held, needs):
        return
    progress.known_outside = True  # first: from here on no snapshot names the pod
    await needs.ztunnels.withdraw(workload.uid)
    _report(workload, None, needs)
    if workload.decision.reason == RELEASED:
        # Last: until the pod's rules are gone, kubelet's probes of the pod need it.
        await needs.probes.remove(workload.uid)
    progress.release_netns()
    progress.set_state(State.OUTSIDE, workload.decision.reason)


async def _find_leftovers(workload: Workload[N], needs: Dependencies[N], table: Table[N]) -> None:
    """Open a netns in which an earlier agent may have left rules.

    Never that of a pod with a sidecar: what redirects such a pod is the sidecar's.
    """
    pod = workload.pod
    if pod.host_network or pod.ended or SIDECAR_STATUS in pod.annotations:
        return
    try:
        workload.progress.held = HeldNetns(await _find_netns(workload, pod, needs, table))
    except GiveUpError:
        return
    except NetnsConflictError as error:
        needs.reporter.netns_conflict(pod, error.netns, error.holder)
    except RetryError:
        if workload.annotation.value is not None:
            raise


async def _remove_redirection(
    workload: Workload[N], held: HeldNetns[N], needs: Dependencies[N]
) -> bool:
    """Remove the redirection. Returns False where open connections are waited for first.

    Where nothing says that the pod was ever in the mesh, only a few attempts are made; then
    the netns is left as it is.
    """
    released = workload.decision.reason == RELEASED
    try:
        if (needs.removal_grace or released) and await _drain(workload, held, needs):
            return False
        if not released:
            await needs.probes.remove(workload.uid)
        await needs.redirector.remove(held.netns, workload.pod)
    except RetryError as error:
        begun_here = held.watch is not None  # rules may be there, even if not all of them
        attempts = workload.progress.attempts
        if begun_here or workload.annotation.was_set or attempts < _ATTEMPTS_FOR_LEFTOVERS:
            raise
        log.info(
            "not looked through for rules",
            pod=str(workload.pod),
            uid=workload.uid,
            reason=str(error),
        )
    return True


async def _drain(workload: Workload[N], held: HeldNetns[N], needs: Dependencies[N]) -> bool:
    """Send nothing new to ztunnel; return whether open connections are to be waited for.

    At an uninstall also until peers had the time to hear that the pod leaves: what they
    send to ztunnel's port after that would find nobody, and no agent would repair it.
    """
    # First of all: peers that hear of it in time send nothing new to ztunnel either.
    _report(workload, None, needs)
    released = workload.decision.reason == RELEASED
    if released and not needs.reporter.delivered(workload.uid):
        raise TransientError("the API has not taken yet that the pod leaves the mesh")
    held.installed_for = None
    left = await needs.redirector.release(held.netns, workload.pod)
    now = asyncio.get_running_loop().time()
    held.draining_since = held.draining_since or now
    waited = now - held.draining_since
    grace_over = left == 0 or waited >= needs.removal_grace
    if grace_over and (not released or waited >= ANNOTATION_PROPAGATION):
        return False
    reason = workload.decision.reason
    workload.progress.set_state(State.LEAVING, f"{reason}; connections that are still open: {left}")
    return True


async def _release(workload: Workload[N], needs: Dependencies[N]) -> None:
    """Release what is held of a pod or sandbox that ends; its netns is not entered any more."""
    await needs.probes.remove(workload.uid)
    await needs.ztunnels.withdraw(workload.uid)
    workload.progress.release_netns()


def _report(workload: Workload[N], redirection: Redirection | None, needs: Dependencies[N]) -> None:
    if workload.annotation.value is not redirection:
        needs.reporter.report(workload.pod, redirection)
        workload.annotation.reported(redirection)
