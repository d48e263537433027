"""The whole chain of one pod in the mesh, link by link: what holds, by which evidence.

Each link says what the agent knows or finds when it is asked. Rules, routes, listeners and
the host's probe set are looked at in the kernel now. Then follow the verdict and what to do.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Generic, Protocol

from nodeagent.mesh.annotation import Redirection
from nodeagent.mesh.dependencies import NetnsFinder, Reporter
from nodeagent.mesh.eligibility import NO_SELECTOR, OPTED_OUT, Wanted
from nodeagent.mesh.errors import RetryError
from nodeagent.mesh.held import N
from nodeagent.mesh.history import Transition
from nodeagent.mesh.pod import REDIRECTION, Pod, PodUID
from nodeagent.mesh.progress import State
from nodeagent.mesh.table import Table
from nodeagent.mesh.verification import Verification, Verifications
from nodeagent.mesh.workload import Workload


class Mark(Enum):
    """Whether a link holds."""

    OK = "ok"
    WRONG = "wrong"
    UNKNOWN = "unknown"
    NOTE = "note"
    """It is neither: the link is not needed, or says how things are."""


@dataclass(frozen=True, slots=True)
class Link:
    """One link of the chain."""

    topic: str
    mark: Mark
    says: str
    evidence: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """All links of one pod's chain, with the conclusion."""

    namespace: str
    name: str
    uid: PodUID
    links: tuple[Link, ...]
    history: tuple[Transition, ...]
    ok: bool
    """Whether the pod is as it should be: served in the mesh, or outside of it."""
    verdict: str
    next_step: str


class Answers(Protocol):
    """What ztunnel has said."""

    @property
    def connected(self) -> bool:
        """Whether a ztunnel is connected."""

    def answer_of(self, uid: PodUID) -> str | None:
        """Ztunnel's last answer about the pod: empty for success, None where there is none."""


class ProbeSet(Protocol):
    """The host's set of addresses whose health probes do not pass ztunnel."""

    async def inspect(self, pod: Pod) -> tuple[str, ...]:
        """Which addresses of `pod` are not in for it; writes nothing. Raises ``RetryError``."""


class Explainer(Generic[N]):
    """Explains pods of the table."""

    def __init__(
        self,
        table: Table[N],
        verifications: Verifications[N],
        *,
        netns_finder: NetnsFinder[N],
        ztunnels: Answers,
        probes: ProbeSet,
        reporter: Reporter,
    ) -> None:
        self._table = table
        self._verifications = verifications
        self._netns_finder = netns_finder
        self._ztunnels = ztunnels
        self._probes = probes
        self._reporter = reporter

    async def of(self, workload: Workload[N]) -> Explanation:
        """Explain one pod. Takes as long as `Verifications.of` at the most."""
        verification = await self._verifications.of(workload)
        links = [self._selected(workload)]
        if workload.decision.wanted is not Wanted.NO:
            links += [
                self._sandbox(workload),
                self._netns(workload),
                _rules(verification),
                self._ztunnel(workload),
                _listeners(verification),
                await self._probe_set(workload),
            ]
        links.append(self._annotation(workload, verification))
        if workload.progress.repairs:
            says = f"{workload.progress.repairs}: something else has changed the redirection"
            links.append(Link("repairs", Mark.NOTE, says))
        wrong = [link.topic for link in links if link.mark in {Mark.WRONG, Mark.UNKNOWN}]
        ok = verification.ok and not wrong
        verdict, next_step = _conclusion(workload, verification, wrong)
        pod = workload.seen
        return Explanation(
            namespace=pod.namespace,
            name=pod.name,
            uid=pod.uid,
            links=tuple(links),
            history=tuple(workload.progress.history),
            ok=ok,
            verdict=verdict,
            next_step=next_step,
        )

    def _selected(self, workload: Workload[N]) -> Link:
        mark = {Wanted.YES: Mark.OK, Wanted.NO: Mark.NOTE, Wanted.UNKNOWN: Mark.UNKNOWN}
        word = {Wanted.YES: "yes", Wanted.NO: "no", Wanted.UNKNOWN: "not known yet"}
        wanted = workload.decision.wanted
        says = f"{word[wanted]}: {workload.decision.reason}"
        return Link("selected", mark[wanted], says, self._table.evidence(workload))

    def _sandbox(self, workload: Workload[N]) -> Link:
        addresses = ", ".join(map(str, workload.pod.addresses)) or "no address yet"
        if (sandbox := workload.sandbox) is None:
            says = "not handed over by the CNI plugin to this agent"
            return Link("sandbox", Mark.NOTE, says, (f"addresses: {addresses}",))
        return Link(
            "sandbox",
            Mark.OK,
            f"handed over by the CNI plugin, interface {sandbox.interface} of {sandbox.network}",
            (f"container {sandbox.container_id}", f"addresses: {addresses}"),
        )

    def _netns(self, workload: Workload[N]) -> Link:
        if workload.netns is None:
            return Link("netns", Mark.WRONG, f"not open: {workload.detail or 'not looked for yet'}")
        where = self._netns_finder.found_at(workload.pod)
        return Link("netns", Mark.OK, str(workload.netns.id), (where,) if where else ())

    def _ztunnel(self, workload: Workload[N]) -> Link:
        answer = self._ztunnels.answer_of(workload.uid)
        connected = "a ztunnel is connected" if self._ztunnels.connected else "none is connected"
        if answer:
            return Link("ztunnel", Mark.WRONG, f"refuses the pod: {answer}", (connected,))
        if not self._ztunnels.connected:
            return Link("ztunnel", Mark.WRONG, "no ztunnel is connected to this agent")
        if answer is None:
            return Link("ztunnel", Mark.WRONG, "has not answered for this pod yet", (connected,))
        return Link("ztunnel", Mark.OK, "has accepted the pod", (connected,))

    async def _probe_set(self, workload: Workload[N]) -> Link:
        if not workload.pod.addresses:
            return Link("probes", Mark.NOTE, "the pod has no address to let probes through to")
        try:
            missing = await self._probes.inspect(workload.pod)
        except RetryError as error:
            return Link("probes", Mark.UNKNOWN, f"not looked at: {error}")
        if missing:
            return Link("probes", Mark.WRONG, "; ".join(missing))
        return Link("probes", Mark.OK, "the host lets kubelet's probes past ztunnel")

    def _annotation(self, workload: Workload[N], verification: Verification) -> Link:
        value = workload.annotation.value
        says = f"{REDIRECTION}: {value.value if value else 'not set'}"
        delivered = self._reporter.delivered(workload.uid)
        evidence = () if delivered else ("the API has not taken the last change yet",)
        enabled = value is Redirection.ENABLED
        if workload.decision.wanted is Wanted.NO:
            mark, truth = Mark.WRONG if value else Mark.OK, "not in the mesh"
        elif verification.ok:
            mark, truth = Mark.OK if enabled else Mark.WRONG, "in the mesh"
        else:
            mark, truth = Mark.WRONG if enabled else Mark.NOTE, "not in order"
        if mark is Mark.WRONG:
            says = f"{says}, but the pod is {truth}"
        return Link("annotation", mark, says, evidence)


def _rules(verification: Verification) -> Link:
    if not verification.looked:
        return Link("rules, routes", Mark.UNKNOWN, verification.reason)
    if verification.differences:
        return Link("rules, routes", Mark.WRONG, "differ", verification.differences)
    return Link("rules, routes", Mark.OK, "installed as desired")


def _listeners(verification: Verification) -> Link:
    if not verification.looked:
        return Link("listeners", Mark.UNKNOWN, "not looked at")
    if verification.silent:
        ports = ", ".join(map(str, verification.silent))
        return Link("listeners", Mark.WRONG, f"ztunnel does not listen on {ports}")
    return Link("listeners", Mark.OK, "ztunnel listens on all of its ports in the pod")


_NOTHING = "nothing"
_WAIT = "wait a moment and ask again"
_ZTUNNEL = (
    "look at ztunnel's pod on this node and its log: kubectl get pods -A -o wide -l app=ztunnel"
)
_NEXT = {
    State.NEW: _WAIT,
    State.OUTSIDE: _WAIT,
    State.LEAVING: _WAIT,
    State.WAITING: "wait; if this lasts, kubectl describe pod tells what the pod waits for",
    State.RETRYING: "remove the cause; the agent tries again by itself, every 5 s at the latest",
    State.PENDING: _ZTUNNEL,
    State.UNSERVED: _ZTUNNEL,
    State.ENROLLED: "ask again in some seconds: the agent repairs this by itself; if it comes"
    " back, something on the node or in the pod keeps changing it (nodeagent history)",
    State.FAILED: "remove the cause, then delete the pod, so that it is made again",
}


_NEXT_FOR = {
    "selected": "wait; the Kubernetes namespace has not been seen yet",
    "netns": _NEXT[State.RETRYING],
    "rules, routes": _NEXT[State.ENROLLED],
    "ztunnel": _ZTUNNEL,
    "listeners": _ZTUNNEL,
    "probes": "ask again in some seconds: the agent repairs this by itself; if it stays, the"
    " agent's log has the reason",
    "annotation": "ask again in some seconds: the agent sets the annotation; if it stays, the"
    " agent's log says why the API server does not take it",
}
"""By the topic of the first link that does not hold."""


def _conclusion(
    workload: Workload[N], verification: Verification, wrong: list[str]
) -> tuple[str, str]:
    """The verdict, and what to do next."""
    if workload.decision.wanted is Wanted.NO or workload.gone:
        return _conclusion_outside(workload, wrong)
    if verification.ok and not wrong:
        return "in the mesh: its traffic is redirected, and ztunnel serves it", _NOTHING
    if verification.ok:
        return f"in the mesh, but look at: {', '.join(wrong)}", _NEXT_FOR[wrong[0]]
    found = verification.reason
    if verification.looked and not verification.differences:
        return f"redirected, but not served: {found}", _ZTUNNEL
    return f"should be in the mesh, and is not in order: {found}", _NEXT[workload.state]


def _conclusion_outside(workload: Workload[N], wrong: list[str]) -> tuple[str, str]:
    if workload.gone:
        return "the pod is gone", _NOTHING
    reason = workload.decision.reason
    if workload.state is State.OUTSIDE and not wrong:
        return f"not in the mesh, and not meant to be: {reason}", _how_to_enroll(workload)
    return f"leaves the mesh: {workload.detail or reason}", _WAIT


def _how_to_enroll(workload: Workload[N]) -> str:
    if not workload.decision.reason.startswith((NO_SELECTOR, OPTED_OUT)):
        return _NOTHING
    return (
        "nothing; or, to have the pod in the mesh, set the labels that one of the selectors"
        " above asks for"
    )
