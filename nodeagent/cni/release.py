"""The end of sandboxes: deleted by the runtime, or found to be gone by its collection."""

import asyncio
import contextlib
from typing import Any, Generic

import structlog

from nodeagent.cni.attachments import Attachments
from nodeagent.cni.errors import CniError, Code
from nodeagent.cni.pod_finder import Identify
from nodeagent.cni.request import Attachment
from nodeagent.mesh.held import N
from nodeagent.mesh.sandbox import Sandbox
from nodeagent.mesh.table import Table
from nodeagent.mesh.workload import Workload

log = structlog.get_logger()

RELEASE_DEADLINE = 2.0
"""Seconds for which a DEL waits for the release, which goes on after that without the DEL."""


class Release(Generic[N]):
    """Releases sandboxes; one that is not there any more is no error."""

    def __init__(self, table: Table[N], attachments: Attachments, identify: Identify) -> None:
        self._table = table
        self._attachments = attachments
        self._identify = identify

    async def delete(self, attachment: Attachment, netns: str | None) -> None:
        """End one attachment; return when its netns is closed, or after ``RELEASE_DEADLINE``."""
        workload = self._holder(attachment) or self._found_holder(netns)
        self._attachments.deleted(attachment, known=workload is not None)
        if workload is None:
            return
        log.info("sandbox deleted", pod=str(workload.pod), uid=workload.uid, netns=netns)
        held = workload.netns.id if workload.netns else None
        self._table.sandbox_ended(workload)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(RELEASE_DEADLINE):
                await workload.until(lambda now: now.netns is None or now.netns.id != held)

    def collect(self, network: str, valid: Any) -> None:
        """End the attachments of `network` that the runtime does not have any more.

        `valid` is the runtime's list of those that it has. Without a list (none at all, or
        ``null``) only attachments end whose netns is gone: nobody has said that the others
        are not in use. One that is being added is newer than any list, and stays. Raises
        ``CniError`` for a list that is not understood.
        """
        keep = _attachments(network, valid)
        for workload in self._table:
            if workload.sandbox is None or workload.sandbox.network != network:
                continue
            attachment = attachment_of(workload.sandbox)
            if self._attachments.is_adding(attachment):
                continue
            if self._exists(workload.sandbox.netns) if keep is None else attachment in keep:
                continue
            log.info("sandbox collected", pod=str(workload.pod), uid=workload.uid)
            self._table.sandbox_ended(workload)

    def _exists(self, netns: str) -> bool:
        try:
            self._identify(netns)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            return True  # whether it exists cannot be told
        return True

    def _holder(self, attachment: Attachment) -> Workload[N] | None:
        workloads = (workload for workload in self._table if workload.sandbox is not None)
        return next((workload for workload in workloads if _is(workload.sandbox, attachment)), None)

    def _found_holder(self, netns: str | None) -> Workload[N] | None:
        """Return the workload whose netns the agent has found by itself, after a restart."""
        if netns is None:
            return None
        try:
            identity = self._identify(netns)
        except OSError:
            return None
        return next(
            (
                workload
                for workload in self._table
                if (workload.sandbox is None or not workload.sandbox.container_id)
                and workload.netns is not None
                and workload.netns.id == identity
            ),
            None,
        )


def attachment_of(sandbox: Sandbox) -> Attachment:
    """Return what the runtime calls the interface that `sandbox` was handed over with."""
    return Attachment(
        network=sandbox.network, container_id=sandbox.container_id, interface=sandbox.interface
    )


def _is(sandbox: Sandbox | None, attachment: Attachment) -> bool:
    return sandbox is not None and attachment_of(sandbox) == attachment


def _attachments(network: str, valid: Any) -> set[Attachment] | None:
    """Return the runtime's list; None where there is none.

    ocicni (CRI-O) sends ``null`` for a network in which it has no sandbox, and a runtime
    that hands libcni no arguments has the key left out; both have libcni send a DEL for
    each attachment in its cache first. containerd sends no GC at all.
    """
    if valid is None:
        return None
    found = set()
    for entry in valid if isinstance(valid, list) else [None]:
        match entry:
            case {"containerID": str(container), "ifname": str(interface)}:
                found.add(Attachment(network=network, container_id=container, interface=interface))
            case _:
                # Taken for an empty list, it would end every pod's attachment.
                raise CniError(
                    Code.INVALID_CONFIGURATION,
                    "cni.dev/valid-attachments is not a list of attachments",
                )
    return found
