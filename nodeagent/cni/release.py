"""The end of sandboxes: deleted by the runtime, or found to be gone by its collection."""

import asyncio
import contextlib
from typing import Any, Generic

import structlog

from nodeagent.cni.admission import Identify
from nodeagent.cni.attachments import Attachments
from nodeagent.cni.errors import CniError, Code
from nodeagent.cni.request import Attachment
from nodeagent.mesh.held import N
from nodeagent.mesh.sandbox import Sandbox
from nodeagent.mesh.table import Table
from nodeagent.mesh.workload import Workload

log = structlog.get_logger()

RELEASE_DEADLINE = 2.0
"""Seconds for which a DEL waits until the sandbox is let go of; that goes on without it."""


class Release(Generic[N]):
    """Lets go of sandboxes; whatever is not there any more is no error."""

    def __init__(self, table: Table[N], attachments: Attachments, identify: Identify) -> None:
        self._table = table
        self._attachments = attachments
        self._identify = identify

    async def delete(self, attachment: Attachment, netns: str | None) -> None:
        """End one attachment; return when its namespace is let go of, or soon after."""
        row = self._holder(attachment) or self._found_holder(netns)
        self._attachments.deleted(attachment, known=row is not None)
        if row is None:
            return
        log.info("sandbox deleted", pod=str(row.pod), uid=row.uid, netns=netns)
        held = row.netns.id if row.netns else None
        self._table.sandbox_ended(row)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(RELEASE_DEADLINE):
                await row.until(lambda row: row.netns is None or row.netns.id != held)

    def collect(self, network: str, valid: Any) -> None:
        """End the attachments of `network` that the runtime does not have any more.

        `valid` is what it says that it has. Without a list (none at all, or ``null``)
        only those end whose network namespace is gone: nobody has said that the others
        are not in use. One that is being added is newer than any list. Raises
        ``CniError`` for a list that is not understood.
        """
        keep = _attachments(network, valid)
        for row in self._table:
            if row.sandbox is None or row.sandbox.network != network:
                continue
            attachment = attachment_of(row.sandbox)
            if self._attachments.is_adding(attachment):
                continue
            if self._exists(row.sandbox.netns) if keep is None else attachment in keep:
                continue
            log.info("sandbox collected", pod=str(row.pod), uid=row.uid)
            self._table.sandbox_ended(row)

    def _exists(self, netns: str) -> bool:
        try:
            self._identify(netns)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            return True  # it cannot be told
        return True

    def _holder(self, attachment: Attachment) -> Workload[N] | None:
        rows = (row for row in self._table if row.sandbox is not None)
        return next((row for row in rows if _is(row.sandbox, attachment)), None)

    def _found_holder(self, netns: str | None) -> Workload[N] | None:
        """Return the row whose namespace the agent has found by itself, after a restart."""
        if netns is None:
            return None
        try:
            identity = self._identify(netns)
        except OSError:
            return None
        return next(
            (
                row
                for row in self._table
                if (row.sandbox is None or not row.sandbox.container_id)
                and row.netns is not None
                and row.netns.id == identity
            ),
            None,
        )


def attachment_of(sandbox: Sandbox) -> Attachment:
    """Return what the runtime calls it."""
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
