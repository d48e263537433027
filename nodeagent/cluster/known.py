"""What is known of the objects of one kind, when news of them come by several ways.

News come by three ways: a watch, lists, and answers to a request for one object. Each way is
in order, but one way may be ahead of another. Where that is so, the resource version of the
object decides which news is the newer.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from nodeagent.cluster.projection import ProjectionError, Raw, version_number

T = TypeVar("T")

_MAX_REASON = 300
"""Characters of the reason why an object was passed over."""


@dataclass(frozen=True, slots=True)
class Seen(Generic[T]):
    """An object that is new, or whose value has changed."""

    value: T


@dataclass(frozen=True, slots=True)
class Gone:
    """The object with this key no longer exists."""

    key: str


@dataclass(frozen=True, slots=True)
class Found(Generic[T]):
    """An object in a list; the value is None where the object is odd."""

    value: T | None
    version: int


@dataclass(frozen=True, slots=True, eq=False)
class _Question:
    """A request for one object that is not answered yet."""

    heard: dict[str, int]
    """The keys of which there was news since the request, with the version of the last news."""


class Known(Generic[T]):
    """The objects by key, each with the value that was told last.

    An object is odd where it has not the shape that the API gives it.
    """

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
        """None: the object exists, but is odd, or was only asked for."""
        self._asked: dict[str, int] = {}
        """By key, the version of an object that was asked for and has not come otherwise yet."""
        self._questions: list[_Question] = []
        self._odd: dict[str, str] = {}
        """By key, why an object is odd."""

    async def ask(self, get: Callable[[], Awaitable[Raw | None]]) -> T | None:
        """Ask the server for one object with `get`; return its value, None where it is gone.

        Where there was newer news of the object meanwhile, that is returned. News that is
        older than the answer is not told any more; the end of the object is. Raises what
        `get` does, and ``ProjectionError``.
        """
        self._questions.append(question := _Question({}))
        try:
            raw = await get()
        finally:
            self._questions.remove(question)
        if raw is None:
            return None
        key, value, version = self._key(raw), self._project(raw), version_number(raw)
        if (heard := question.heard.get(key)) is not None and heard >= version:
            return (self._values[key] or value) if key in self._values else None
        # The value is not noted: the caller has it, but older news of the object may be on
        # its way to the same listener. So the watch has to tell the value once more.
        self._values.setdefault(key, None)
        self._asked[key] = version
        return value

    def read(self, raw: Raw) -> tuple[str, T | None] | None:
        """The key and the value of an object; no value where it is odd, None where it has no key.

        Raises nothing: neither an odd object nor a fault in this agent's code may keep other
        objects' news from being told.
        """
        key = ""
        try:
            key = self._key(raw)
            value = self._project(raw)
        except Exception as error:  # noqa: BLE001 - one object's fault must not stop the others
            self._pass_over(key, error)
            return (key, None) if key else None
        self._odd.pop(key, None)
        return key, value

    def exists(self, key: str, value: T | None, version: int) -> Seen[T] | None:
        """Take the news that an object exists, and say what that changes."""
        if self._asked.get(key, 0) > version:
            return None  # `ask` has returned a newer state
        self._asked.pop(key, None)
        self._note(key, version)
        # Most news of a pod changes nothing of its value.
        if value is not None and value != self._values.get(key):
            self._values[key] = value
            return Seen(value)
        # An odd object exists all the same: it is not gone (L9).
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
        # Ends first, because a new object may have the name or address of one that is gone.
        changes: list[Seen[T] | Gone | None] = [
            self.deleted(key, version)
            for key in self._values.keys() - found.keys()
            # The list is older than an object that was asked for since.
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
        # Of all objects without a key, only the first is reported.
        if key not in self._odd or (key and self._odd[key] != reason):
            self._odd[key] = reason
            self._passed_over(key, reason, ours)
