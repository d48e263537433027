"""What the agent has told on its present connection, and what follows from it."""

from collections.abc import Iterable

from ztunnel_stub.codec import ProtocolError


class Snapshot:
    """A new one for every connection: nothing that was said on the last one counts."""

    __slots__ = ("_named", "complete")

    def __init__(self) -> None:
        self._named: set[str] = set()
        self.complete = False
        """Whether the agent has sent all of it."""

    def add(self, uid: str) -> None:
        """The agent wants `uid` served."""
        if not self.complete:
            self._named.add(uid)

    def keep(self, uid: str) -> None:
        """The agent has no news of `uid`. Raises ``ProtocolError`` after the snapshot."""
        if self.complete:
            raise ProtocolError("keep after the snapshot was sent")
        self._named.add(uid)

    def delete(self) -> None:
        """The agent removes one. Raises ``ProtocolError`` before the snapshot's end."""
        if not self.complete:
            raise ProtocolError("delete before the snapshot was sent")

    def finish(self, served: Iterable[str]) -> set[str]:
        """Return those of the `served` UIDs that are to go.

        Raises ``ProtocolError`` the second time.
        """
        if self.complete:
            raise ProtocolError("a second snapshot on one connection")
        self.complete = True
        unnamed = set(served) - self._named
        self._named.clear()
        return unnamed
