"""The plugin's commands: each request that the binary forwards is taken apart and answered.

`Admission` decides about ADD and CHECK, `Release` about DEL and GC. What they raise becomes an
answer here, in the words and the form of the CNI specification.
"""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic

import structlog

from nodeagent.cni import result
from nodeagent.cni.admission import Admission
from nodeagent.cni.attachments import Attachments
from nodeagent.cni.configuration import Configuration
from nodeagent.cni.errors import CniError, Code
from nodeagent.cni.istio import IstioRequest
from nodeagent.cni.pod_finder import Identify
from nodeagent.cni.release import Release, attachment_of
from nodeagent.cni.request import Attachment, Command, PodName, Request
from nodeagent.cni.versions import NEWEST
from nodeagent.mesh.held import N
from nodeagent.mesh.pod import IPAddress
from nodeagent.mesh.sandbox import Sandbox
from nodeagent.mesh.table import Table
from nodeagent.observer import NOBODY, Observer

log = structlog.get_logger()

_ISTIO = Attachment(network="", container_id="", interface="")
"""The attachment of Istio's plugin, which says neither what it attaches nor when that ends."""

_SUCCESS = "0"

_NEVER_FAILING = frozenset({Command.DEL, Command.STATUS})
"""A failure would keep a pod in Terminating (L18), or a node from being ready (L40).

So these commands succeed even where the request is not understood, as that of a version of
CNI to come, and where the agent itself fails.
"""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the runtime gets: standard output, and whether the plugin exits with 0."""

    success: bool
    body: str = ""


@dataclass(slots=True)
class _Call:
    """What an observer is told of one call."""

    command: str = "unknown"
    """Unknown: the request says none that the CNI specification has."""
    code: str = "unanswered"
    """"0", or that of the error, also where the answer hides it (`_NEVER_FAILING`).

    Unanswered: the agent has stopped, or the caller has gone."""


class Plugin(Generic[N]):
    """Carries out what the container runtime asks for."""

    def __init__(
        self,
        table: Table[N],
        admission: Admission[N],
        *,
        identify: Identify,
        observer: Observer = NOBODY,
    ) -> None:
        self._observer = observer
        self._admission = admission
        self._attachments = Attachments()
        self._release = Release(table, self._attachments, identify)

    async def call(self, body: bytes) -> Answer:
        """Answer a call that the binary has forwarded."""
        with self._observed() as call:
            return await self._answer(body, call)

    async def _answer(self, body: bytes, call: _Call) -> Answer:
        version = NEWEST
        command = None
        try:
            request = Request.parse(body)
            command = request.environment.command
            call.command = command.value
            if command is Command.VERSION:
                call.code = _SUCCESS
                return Answer(success=True, body=result.versions())
            configuration = Configuration.parse(request.stdin)
            version = configuration.version
            text = await self._run(command, request, configuration)
            call.code = _SUCCESS
            return Answer(success=True, body=text)
        except CniError as error:
            call.code = str(int(error.code))
            log.warning(
                "plugin request failed", command=command, code=int(error.code), reason=str(error)
            )
            if command in _NEVER_FAILING:
                return Answer(success=True)
            return Answer(success=False, body=result.failure(error, version))
        except Exception:
            log.exception("unexpected failure", command=command)
            call.code = str(int(Code.TRY_AGAIN))
            if command in _NEVER_FAILING:
                return Answer(success=True)
            fault = CniError(
                Code.TRY_AGAIN, "the mesh's agent failed unexpectedly", "look at its log"
            )
            return Answer(success=False, body=result.failure(fault, version))

    async def istio_add(self, body: bytes) -> None:
        """Carry out an ADD of Istio's plugin. Raises ``CniError``."""
        with self._observed() as call:
            call.command = Command.ADD.value
            try:
                asked = IstioRequest.parse(body)
                await self._add(asked.pod, _sandbox(_ISTIO, asked.netns, asked.addresses))
            except CniError as error:
                call.code = str(int(error.code))
                raise
            call.code = _SUCCESS

    @contextlib.contextmanager
    def _observed(self) -> Iterator[_Call]:
        call, began = _Call(), time.monotonic()
        self._observer.plugin_asked()
        try:
            yield call
        finally:
            self._observer.plugin_answered(call.command, call.code, time.monotonic() - began)

    async def _run(self, command: Command, request: Request, configuration: Configuration) -> str:
        environment = request.environment
        match command:
            case Command.ADD:
                attachment, netns = request.attachment(configuration), environment.netns
                if (pod := environment.pod) is not None:
                    addresses = result.addresses(configuration.previous)
                    await self._add(pod, _sandbox(attachment, netns, addresses))
                return result.passed_on(configuration)
            case Command.DEL:
                await self._release.delete(
                    request.attachment(configuration), environment.netns_if_any
                )
            case Command.CHECK:
                request.attachment(configuration)
                netns = environment.netns
                if (pod := environment.pod) is not None:
                    await self._admission.check(pod, netns)
            case Command.GC:
                self._release.collect(configuration.name, configuration.attachments)
            case _:
                # STATUS decides whether the node is ready, and a node that is not cannot
                # start ztunnel, or the agent anew. So whoever can answer is well, with
                # lists or without, with a ztunnel or without: pods that need them wait
                # in their ADD (L15, L40).
                pass
        return ""

    async def _add(self, pod: PodName, sandbox: Sandbox) -> None:
        with self._attachments.adding(attachment_of(sandbox)) as adding:
            reason = await self._admission.admit(pod, sandbox, adding)
        log.info("sandbox may go on", pod=str(pod), netns=sandbox.netns, reason=reason)


def _sandbox(attachment: Attachment, netns: str, addresses: tuple[IPAddress, ...]) -> Sandbox:
    return Sandbox(
        container_id=attachment.container_id,
        netns=netns,
        addresses=addresses,
        network=attachment.network,
        interface=attachment.interface,
    )
