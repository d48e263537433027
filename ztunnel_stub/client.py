"""The stub's side of ZDS: connect, listen to the agent, answer, come back."""

import asyncio
import contextlib
import os

import structlog
from structlog.typing import FilteringBoundLogger

from nodeagent.zds import zds_pb2
from ztunnel_stub.backoff import Backoff
from ztunnel_stub.channel import Channel, Packet
from ztunnel_stub.codec import Add, ProtocolError, Request, ack, decode, hello
from ztunnel_stub.faults import GARBAGE, OVERSIZED, FaultKind, Faults
from ztunnel_stub.record import Recorder
from ztunnel_stub.sockets import ListenError
from ztunnel_stub.workloads import Workloads

log: FilteringBoundLogger = structlog.get_logger()


class FaultError(Exception):
    """A fault that was asked for ends the connection."""


class Client:
    """Keeps `workloads` as the agent wants them."""

    def __init__(
        self,
        path: str,
        workloads: Workloads,
        *,
        retry_interval: float,
        recorder: Recorder,
        faults: Faults,
    ) -> None:
        """Pending workloads are tried again after `retry_interval` seconds."""
        self._path = path
        self._workloads = workloads
        self._retry_interval = retry_interval
        self._recorder = recorder
        self._faults = faults
        self._backoff = Backoff()
        self._requests = 0
        self._retry_at: float | None = None
        self._last_trouble = ""

    async def run(self) -> None:
        """Stay connected until cancelled."""
        while True:
            try:
                await self._connection()
            except OSError as error:
                self._trouble(_explained(self._path, error))
            except (ProtocolError, FaultError) as error:
                self._trouble(str(error))
            else:
                self._trouble("the agent closed the connection")
            await asyncio.sleep(self._backoff.next())

    async def _connection(self) -> None:
        with Channel(self._path, self._recorder) as channel:
            log.info("connected to the agent", path=self._path)
            self._workloads.connected()
            self._requests = 0
            try:
                if not self._faults.take(FaultKind.NO_HELLO):
                    await channel.send(hello(), zds_pb2.ZdsHello)
                if self._faults.take(FaultKind.UNASKED_ANSWER):
                    await channel.send(ack())
                while (packet := await self._next(channel)) is not None:
                    await self._handle(channel, packet)
            finally:
                self._workloads.disconnected()

    async def _next(self, channel: Channel) -> Packet | None:
        """The next packet; meanwhile, what is pending is tried again."""
        loop = asyncio.get_running_loop()
        while True:
            if not self._workloads.pending:
                self._retry_at = None
            elif self._retry_at is None:
                self._retry_at = loop.time() + self._retry_interval
            elif self._retry_at <= loop.time():
                self._retry_at = None
                await self._workloads.retry()
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(self._retry_at):
                    return await channel.receive()

    async def _handle(self, channel: Channel, packet: Packet) -> None:
        # Only an agent that talks is one; what merely accepts is not called at full speed.
        self._backoff.reset()
        self._last_trouble = ""
        try:
            request = decode(packet.data, packet.descriptors, packet.flags)
            answer = await self._answer(request)
        except ProtocolError as error:
            await channel.send(ack(f"protocol error: {error}"))
            raise
        await self._reply(channel, answer)

    async def _answer(self, request: Request) -> bytes:
        self._requests += 1
        self._close_in_snapshot(request)
        if isinstance(request, Add) and self._faults.take(FaultKind.NEGATIVE_ANSWER):
            self._workloads.hold(request)
            return ack("refused by --fault negative-answer")
        try:
            await self._workloads.apply(request)
        except ListenError as error:
            return ack(str(error))
        return ack()

    def _close_in_snapshot(self, request: Request) -> None:
        fault = self._faults.find(FaultKind.CLOSE_IN_SNAPSHOT)
        if fault is None or self._workloads.snapshot_complete or self._requests < fault.argument:
            return
        self._faults.take(FaultKind.CLOSE_IN_SNAPSHOT)
        if isinstance(request, Add):
            request.namespace.close()
        raise FaultError("closed by --fault close-in-snapshot")

    async def _reply(self, channel: Channel, answer: bytes) -> None:
        if late := self._faults.take(FaultKind.LATE_ANSWER):
            await asyncio.sleep(late.argument)
        if self._faults.take(FaultKind.MISSING_ANSWER):
            return
        if self._faults.take(FaultKind.GARBAGE):
            answer = GARBAGE
        elif self._faults.take(FaultKind.OVERSIZED_ANSWER):
            answer = OVERSIZED
        await channel.send(answer)
        if self._faults.take(FaultKind.DOUBLE_ANSWER):
            await channel.send(answer)

    def _trouble(self, text: str) -> None:
        # The same trouble again is no news; the agent may be away for long.
        if text != self._last_trouble:
            self._last_trouble = text
            log.warning("not connected to the agent", trouble=text)


def _explained(path: str, error: OSError) -> str:
    """One line with the remedy, where there is one."""
    text = f"{path}: {error.strerror}"
    directory = os.path.dirname(path)
    match error:
        case FileNotFoundError() if not os.path.isdir(directory):
            return f"{text}: no directory {directory}; start the agent, or mount it from the host"
        case FileNotFoundError() | ConnectionRefusedError():
            return f"{text}: start the agent, or name its socket with --inpod-uds"
        case PermissionError():
            return f"{text}: run the stub as root, like the agent"
        case BlockingIOError():
            return f"{text}: the agent does not accept connections"
        case _:
            return text
