"""What is known of one kind of object, and in which order news of it count.

News come by three ways: a watch, lists, and answers about one object that somebody has
asked for directly. Each way for itself is in order; between them the versions decide.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from nodeagent.cluster import projection
from nodeagent.cluster.projection import ProjectionError, Raw

T = TypeVar("T")

_MAX_REASON = 300
"""Characters of the reason why an object was passed over."""


@dataclass(frozen=True, slots=True)
class Seen(Generic[T]):
    """An object that is new, or has changed for us."""

    value: T


@dataclass(frozen=True, slots=True)
class Gone:
    """The object with this key no longer exists."""

    key: str


@dataclass(frozen=True, slots=True)
class Found(Generic[T]):
    """An object in a list; without a value where it is not as it should be."""

    value: T | None
    version: int


@dataclass(frozen=True, slots=True, eq=False)
class _Question:
    """A request for one object that is not answered yet."""

    heard: dict[str, int]
    """The keys of which something was heard meanwhile, with the versions."""


class Known(Generic[T]):
    """The objects by key, each as it was told last."""

    def __init__(
        self,
        key: Callable[[Raw], str],
        project: Callable[[Raw], T],
        passed_over: Callable[[str, str, bool], None],
    ) -> None:
        """`key` and `project` raise ``ProjectionError``.

        `passed_over` is told of an object that is odd, once: its key ("" where it has none),
        the reason, and whether the fault is the agent's own.
        """
        self._key = key
        self._project = project
        self._passed_over = passed_over
        self._values: dict[str, T | None] = {}
        """None: it exists, but is not as it should be, or was only asked for."""
        self._asked: dict[str, int] = {}
        """Versions of what was asked for and has not come by the watch or a list yet."""
        self._questions: list[_Question] = []
        self._odd: dict[str, str] = {}
        """Why objects were passed over, for as long as they are."""

    async def ask(self, get: Callable[[], Awaitable[Raw | None]]) -> T | None:
        """The object that `get` asks the server for, or what was heard of it since.

        None for one that has gone. News that are older than the answer are not told any
        more, and the end of the object will be. Raises what `get` does, and
        ``ProjectionError``.
        """
        self._questions.append(question := _Question({}))
        try:
            raw = await get()
        finally:
            self._questions.remove(question)
        if raw is None:
            return None
        key, value, version = self._key(raw), self._project(raw), number(raw)
        if (heard := question.heard.get(key)) is not None and heard >= version:
            return (self._values[key] or value) if key in self._values else None
        # Without the value: it has reached one listener by a way of its own, and something
        # older may be under way to the same one. So the watch tells it once more.
        self._values.setdefault(key, None)
        self._asked[key] = version
        return value

    def read(self, raw: Raw) -> tuple[str, T | None] | None:
        """An object's key, and its value unless that is odd; None where even the key is.

        Raises nothing: whatever an object looks like, and whatever we do wrong with it, it
        costs no other object its news. This is the one place where that is held.
        """
        key = ""
        try:
            key = self._key(raw)
            value = self._project(raw)
        except Exception as error:  # noqa: BLE001 - ours or the object's, the others go on
            self._pass_over(key, error)
            return (key, None) if key else None
        self._odd.pop(key, None)
        return key, value

    def exists(self, key: str, value: T | None, version: int) -> Seen[T] | None:
        """Take the news that an object exists, and say what that changes."""
        if self._asked.get(key, 0) > version:
            return None  # somebody has been told something newer
        self._asked.pop(key, None)
        self._note(key, version)
        # Most news of a pod changes nothing for us.
        if value is not None and value != self._values.get(key):
            self._values[key] = value
            return Seen(value)
        # It exists: nothing that is missing or odd makes it gone (L9).
        self._values.setdefault(key, None)
        return None

    def deleted(self, key: str, version: int) -> Gone | None:
        """Take the news that an object exists no longer, and say what that changes."""
        known = key in self._values
        self._values.pop(key, None)
        self._asked.pop(key, None)
        self._odd.pop(key, None)
        self._note(key, version)
        return Gone(key) if known else None

    def become(self, found: Mapping[str, Found[T]], version: int) -> list[Seen[T] | Gone]:
        """Take a list of `version`, and say what it changes."""
        # The old ones first: a new one may have an old one's name or address.
        changes: list[Seen[T] | Gone | None] = [
            self.deleted(key, version)
            for key in self._values.keys() - found.keys()
            # Not what the list cannot have yet, because it was made later.
            if self._asked.get(key, 0) <= version
        ]
        changes += [self.exists(key, one.value, one.version) for key, one in found.items()]
        return [change for change in changes if change is not None]

    def _note(self, key: str, version: int) -> None:
        for question in self._questions:
            question.heard[key] = version

    def _pass_over(self, key: str, error: Exception) -> None:
        ours = not isinstance(error, ProjectionError)
        reason = (f"{type(error).__name__}: {error}" if ours else str(error))[:_MAX_REASON]
        # Of those that have no key, the first stands for all.
        if key not in self._odd or (key and self._odd[key] != reason):
            self._odd[key] = reason
            self._passed_over(key, reason, ours)


def version_of(raw: Any) -> str:
    """What to resume from behind this object, or list; "" where it does not say."""
    try:
        return projection.version(raw)
    except ProjectionError:
        return ""


def number(raw: Any) -> int:
    """The version of an object as a number: see `as_number`."""
    return as_number(version_of(raw))


def as_number(version: str) -> int:
    """The version as a number: of two states of an object the later has the greater one.

    The API reference has allowed that since Kubernetes 1.35, of etcd's revisions, which they
    are everywhere. 0 for anything else: then the watch and the lists are right, always.
    """
    return int(version) if version.isascii() and version.isdecimal() else 0
