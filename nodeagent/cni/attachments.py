"""Attachments that are being added, and those that were deleted before they were."""

import contextlib
from collections import OrderedDict, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from nodeagent.cni.errors import CniError, Code
from nodeagent.cni.request import Attachment

REMEMBERED = 4096
"""Deletions; hours of them on a busy node, and a request is late by seconds at the most."""


@dataclass(slots=True, eq=False)
class Adding:
    """An ADD that is under way."""

    deleted: bool = False

    def check(self) -> None:
        """Raise ``CniError`` if the runtime has given up on it."""
        if self.deleted:
            raise CniError(Code.TRY_AGAIN, "the runtime has deleted this sandbox meanwhile")


class Attachments:
    """Keeps an ADD that was overtaken by its DEL from hurting the pod's next sandbox (L14)."""

    def __init__(self) -> None:
        self._adding: defaultdict[Attachment, list[Adding]] = defaultdict(list)
        self._deleted: OrderedDict[Attachment, None] = OrderedDict()

    @contextlib.contextmanager
    def adding(self, attachment: Attachment) -> Iterator[Adding]:
        """An ADD runs.

        One that comes after its DEL is refused once: a runtime may use an id again,
        and one that means it tries again.
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
        """Whether an ADD of it runs."""
        return attachment in self._adding

    def deleted(self, attachment: Attachment, *, known: bool) -> None:
        """A DEL came; `known`: for a sandbox whose ADD had been here."""
        for adding in self._adding.get(attachment, ()):
            adding.deleted = known = True
        if not known:
            self._deleted[attachment] = None
            if len(self._deleted) > REMEMBERED:
                self._deleted.popitem(last=False)
