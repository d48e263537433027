"""The composition root: the parts, their start and their end."""

import asyncio
import signal
import socket
from contextlib import AsyncExitStack, closing

import structlog
from structlog.typing import FilteringBoundLogger

from nodeagent.linux import syscalls as kernel
from nodeagent.linux.fd_limit import raise_nofile_limit
from nodeagent.netns.netns import Netns
from nodeagent.netns.threads import NetnsThreads
from ztunnel_stub.admin import AdminError, admin, readiness
from ztunnel_stub.client import Client
from ztunnel_stub.faults import Faults
from ztunnel_stub.record import Recorder
from ztunnel_stub.settings import Settings
from ztunnel_stub.sockets import MARK
from ztunnel_stub.workload import Serving
from ztunnel_stub.workloads import Workloads

log: FilteringBoundLogger = structlog.get_logger()

_EXPECTED_DESCRIPTORS = 16_384


class StartError(Exception):
    """The stub cannot run here; the text names the remedy."""


async def run(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, then drain. Raises ``StartError``."""
    _check_privileges()
    raise_nofile_limit(_EXPECTED_DESCRIPTORS)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        await serve(settings, stop)
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


async def serve(settings: Settings, stop: asyncio.Event) -> None:
    """Serve until `stop` is set, then drain. Raises ``StartError``."""
    try:
        await _serve(settings, stop)
    except ExceptionGroup as failed:
        endpoint, others = failed.split(AdminError)
        if endpoint is None or others is not None:
            raise
        raise StartError(str(endpoint.exceptions[0])) from failed


async def _serve(settings: Settings, stop: asyncio.Event) -> None:
    async with AsyncExitStack() as stack:
        threads = stack.enter_context(closing(NetnsThreads()))
        recorder = stack.enter_context(_recorder(settings.record))
        tasks = await stack.enter_async_context(asyncio.TaskGroup())
        workloads = Workloads(
            Serving(
                tasks=tasks,
                threads=threads,
                resolver=settings.dns_resolver,
                drain_timeout=settings.drain_timeout,
            )
        )
        await stack.enter_async_context(admin(workloads, settings.admin_address))
        await stack.enter_async_context(readiness(workloads, settings.readiness_address))
        client = Client(
            settings.inpod_uds,
            workloads,
            retry_interval=settings.retry_interval,
            recorder=recorder,
            faults=Faults(settings.faults),
        )
        connection = tasks.create_task(client.run(), name="zds")
        log.info("started", inpod_uds=settings.inpod_uds)
        await stop.wait()
        log.info("draining", seconds=settings.drain_timeout)
        connection.cancel()
        await asyncio.wait([connection])
        workloads.close()
    log.info("stopped")


def _recorder(path: str | None) -> Recorder:
    try:
        return Recorder(path)
    except OSError as error:
        raise StartError(f"cannot record to {path}: {error.strerror}") from error


def _check_privileges() -> None:
    """Say at the start what every pod would fail of later."""
    try:
        with Netns.current() as own:
            kernel.setns(own.fd, kernel.CLONE_NEWNET)
    except PermissionError as error:
        raise StartError(
            "may not enter network namespaces: run it as root (CAP_SYS_ADMIN), or inside"
            " unshare --user --map-root-user --net"
        ) from error
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, MARK)
            probe.setsockopt(socket.SOL_IP, socket.IP_TRANSPARENT, 1)
    except PermissionError as error:
        raise StartError(
            "may not mark packets: run it as root (CAP_NET_ADMIN), or inside"
            " unshare --user --map-root-user --net"
        ) from error
