"""Attachments that are being added, and those that were deleted before their ADD came.

A runtime that gives up on an ADD sends a DEL and makes another sandbox, and the two requests
may overtake each other. An ADD that its DEL has overtaken must not take the pod over from the
newer sandbox.
"""

import contextlib
from collections import OrderedDict, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from nodeagent.cni.errors import CniError, Code
from nodeagent.cni.request import Attachment

REMEMBERED = 4096
"""Deletions that are kept in mind: hours of them on a busy node; requests are late by seconds."""


@dataclass(slots=True, eq=False)
class Adding:
    """An ADD that runs."""

    deleted: bool = False

    def check(self) -> None:
        """Raise ``CniError`` if the runtime has given up on this ADD."""
        if self.deleted:
            raise CniError(Code.TRY_AGAIN, "the runtime has deleted this sandbox meanwhile")


class Attachments:
    """Keeps an ADD that was overtaken by its DEL from hurting the pod's next sandbox (L14)."""

    def __init__(self) -> None:
        self._adding: defaultdict[Attachment, list[Adding]] = defaultdict(list)
        self._deleted: OrderedDict[Attachment, None] = OrderedDict()

    @contextlib.contextmanager
    def adding(self, attachment: Attachment) -> Iterator[Adding]:
        """Note for the time of the context that an ADD of `attachment` runs.

        The first ADD after a DEL without an ADD is refused, and no further one: a runtime may
        use an id again, and sends its ADD once more.
        """
        adding = Adding(deleted=attachment in self._deleted)
        self._deleted.pop(attachment, None)
        self._adding[attachment].append(adding)
        try:
            yield adding
        finally:
            self._adding[attachment].remove(adding)
            if not self._adding[attachment]:
                del self._adding[attachment]

    def is_adding(self, attachment: Attachment) -> bool:
        """Whether an ADD of `attachment` runs."""
        return attachment in self._adding

    def deleted(self, attachment: Attachment, *, known: bool) -> None:
        """Note that a DEL came; `known`: the attachment's ADD has come before."""
        for adding in self._adding.get(attachment, ()):
            adding.deleted = known = True
        if not known:
            self._deleted[attachment] = None
            if len(self._deleted) > REMEMBERED:
                self._deleted.popitem(last=False)
