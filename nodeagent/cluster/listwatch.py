"""One kind of object, followed for ever: listed, watched, resumed, and listed again.

Three generators, one in another: one connection; a list and the connections that
resume from it; that without end. What they tell are states by key, and a key that is
gone, whichever way that became known.
"""

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

import structlog

from nodeagent.cluster.api import JSON, ApiError, ApiServer, GarbledError
from nodeagent.cluster.projection import ProjectionError, Raw
from nodeagent.mesh.backoff import Backoff

log = structlog.get_logger()

PAGE = 500
"""Objects in one answer to a list, as client-go asks for."""
WATCH_TIME = 300.0
"""Seconds after which the server ends a watch, at the least; at most twice that."""
SILENCE = 150.0
"""Seconds without a byte after which a watch counts as dead: the server's bookmarks come
once a minute."""
LONGEST_WAIT = 10.0
"""Seconds between two tries at the most, where the server asks for no more."""
_LONGEST_REQUEST = 60.0
_STEADY = 10.0
"""Seconds that a connection stands before it counts as a success, though nothing came."""
_RESUMES = 5
"""Refused resumptions, after which a list is tried: an etcd that was restored from a backup
knows no version of before, and answers 504 for ever."""
_EXPIRED = 410
_UNKNOWN_USER = 401
_NOT_THE_VERSION = frozenset({None, 401, 403, 429})

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource(Generic[T]):
    """What is followed, and what is made of it."""

    name: str
    """As RBAC has it, in the plural."""
    path: str
    selector: Mapping[str, str]
    key: Callable[[Raw], str]
    """What tells two objects apart; what it raises ``ProjectionError`` for is passed over."""
    project: Callable[[Raw], T]
    list_accept: str = JSON
    watch_accept: str = JSON
    at_home: bool = False
    """It is followed in the agent's own namespace only."""


@dataclass(frozen=True, slots=True)
class Seen(Generic[T]):
    """An object that is new, or has changed for us."""

    value: T


@dataclass(frozen=True, slots=True)
class Gone:
    """The object with this key no longer exists."""

    key: str


@dataclass(frozen=True, slots=True)
class Listed:
    """A list has been told completely. Comes after each."""


Change = Seen[T] | Gone | Listed


class ListWatch(Generic[T]):
    """Follows one resource; ask once for its `changes`."""

    def __init__(self, api: ApiServer, resource: Resource[T], *, silence: float = SILENCE) -> None:
        self._api = api
        self._resource = resource
        self._silence = silence
        self._known: dict[str, T | None] = {}
        """None: it exists, but is not as it should be."""
        self._version = ""
        """From where a watch resumes."""
        self._trouble = ""
        self._log = log.bind(resource=resource.name)

    def adopt(self, key: str) -> None:
        """Note that `key` was told of by somebody else: that it is gone will be told here."""
        self._known.setdefault(key, None)

    async def changes(self) -> AsyncGenerator[Change[T], None]:
        """Tell everything, without end; only a fault of ours ends it."""
        backoff = Backoff(longest=LONGEST_WAIT)
        while True:
            wait = 0.0
            try:
                async with contextlib.aclosing(self._from_list(backoff)) as changes:
                    async for change in changes:
                        yield change
            except ApiError as error:
                wait = self._failed("list", error)
            await asyncio.sleep(max(wait, backoff.delay()))

    async def _from_list(self, backoff: Backoff) -> AsyncGenerator[Change[T], None]:
        """List, then watch, until the version to resume from is no longer good."""
        for difference in await self._list():
            yield difference
        yield Listed()
        refused = 0
        while refused < _RESUMES:
            wait, began = 0.0, asyncio.get_running_loop().time()
            try:
                async with contextlib.aclosing(self._connection()) as news:
                    async for change in news:
                        refused = 0
                        backoff.reset()
                        if change is not None:
                            yield change
            except GarbledError as error:
                # Resuming would meet the same line again; the list has the state without it.
                self._failed("watch", error)
                return
            except ApiError as error:
                if error.status == _EXPIRED:
                    self._log.info("too much was missed to resume; listing anew")
                    return
                refused += error.status not in _NOT_THE_VERSION
                wait = self._failed("watch", error)
            if asyncio.get_running_loop().time() - began > _STEADY:
                backoff.reset()
            await asyncio.sleep(max(wait, backoff.delay()))

    async def _connection(self) -> AsyncGenerator[Change[T] | None, None]:
        """Watch once, until the server ends it; None: nothing to tell. Raises ``ApiError``."""
        params = {
            **self._resource.selector,
            "watch": "1",
            "allowWatchBookmarks": "true",
            "resourceVersion": self._version,
            # Not all agents of a cluster at the same moment.
            "timeoutSeconds": str(int(WATCH_TIME * random.uniform(1, 2))),  # noqa: S311
        }
        async with self._api.stream(
            self._resource.path,
            params=params,
            accept=self._resource.watch_accept,
            silence=self._silence,
        ) as lines:
            self._works()
            async for line in lines:
                kind, raw = _event(line)
                yield None if kind == "BOOKMARK" else self._changed(kind, raw)
                # Only now: what was told is what a resumption need not repeat.
                self._version = _version(raw)

    async def _list(self) -> list[Change[T]]:
        """The difference between what is known and what there is. Raises ``ApiError``."""
        found: dict[str, T | None] = {}
        changes: list[Change[T]] = []
        params = {**self._resource.selector, "limit": str(PAGE)}
        while True:
            page = await self._api.get(
                self._resource.path, params=params, accept=self._resource.list_accept
            )
            found |= dict(self._projected(page.get("items") or ()))
            metadata = page.get("metadata") or {}
            if not (more := metadata.get("continue")):
                break
            params["continue"] = more
        # The old ones first: a new one may have an old one's name or address.
        changes.extend(Gone(key) for key in self._known.keys() - found.keys())
        for key, value in found.items():
            if value is not None and value != self._known.get(key):
                changes.append(Seen(value))
        self._known = found
        self._version = _version(page)
        self._works()
        return changes

    def _projected(self, items: Iterable[Raw]) -> Iterator[tuple[str, T | None]]:
        for raw in items:
            try:
                key = self._resource.key(raw)
            except ProjectionError as error:
                self._log.warning("object passed over", reason=str(error))
                continue
            try:
                yield key, self._resource.project(raw)
            except ProjectionError as error:
                # It exists: nothing that is missing or odd makes it gone (L9).
                self._log.warning("object passed over", key=key, reason=str(error))
                yield key, None

    def _changed(self, kind: str, raw: Raw) -> Change[T] | None:
        if kind == "DELETED":
            with contextlib.suppress(ProjectionError):
                if (key := self._resource.key(raw)) in self._known:
                    del self._known[key]
                    return Gone(key)
            return None
        for key, value in self._projected([raw]):
            # Most news of a pod changes nothing for us.
            if value is not None and value != self._known.get(key):
                self._known[key] = value
                return Seen(value)
            self._known.setdefault(key, None)
        return None

    def _failed(self, verb: str, error: ApiError) -> float:
        """Say it, unless it was said, and return how long the server wants to be left alone."""
        reason = str(error)
        if error.denied:
            reason = _denial(error, verb, self._resource, self._api.account)
        if (trouble := f"{verb} {error.status}") != self._trouble:
            self._log.warning("cannot be followed; trying again", reason=reason)
        self._trouble = trouble
        # Those who were sent away together do not come back together.
        return min(error.retry_after or 0, _LONGEST_REQUEST) * random.uniform(1, 1.2)  # noqa: S311

    def _works(self) -> None:
        if self._trouble:
            self._trouble = ""
            self._log.info("followed again")


def _denial(error: ApiError, verb: str, resource: Resource[T], who: str) -> str:
    """What to tell people about a permission that is missing or a credential not taken."""
    scope, role = ("here", "Role") if resource.at_home else ("at the cluster scope", "ClusterRole")
    what = f"cannot {verb} {resource.name} {scope}"
    if error.status == _UNKNOWN_USER:
        return f"{what}: the API server does not take the credential of {who}: {error}"
    return f'{what}: {who} needs the {role} "nodeagent" (deploy/base/rbac.yaml)'


def _event(line: bytes) -> tuple[str, Raw]:
    try:
        event = json.loads(line)
        kind, raw = event["type"], event["object"]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise GarbledError(f"a line of the watch is no event: {line[:80]!r}") from error
    if kind == "ERROR":
        raise ApiError(str(raw.get("message")), status=raw.get("code"))
    return kind, raw


def _version(raw: Raw) -> str:
    try:
        version: str = raw["metadata"]["resourceVersion"]
    except (LookupError, TypeError) as error:
        raise GarbledError("an object came without its version") from error
    return version
