"""Following all objects of one kind: they are listed, then watched, without end.

A watch ends often: the server ends each after some minutes, and connections break. It is
resumed from the version that was seen last. Where that version is too old for the server, the
objects are listed again, and what has changed meanwhile is found by comparison. Three
generators do that, one in another: `_connection` is one watch, `_from_list` a list and the
watches that resume from it, and `changes` all of that without end.
"""

import asyncio
import contextlib
import json
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

import structlog

from nodeagent.cluster.api import (
    JSON,
    ApiError,
    ApiServer,
    GarbledError,
    SilenceError,
    status_error,
)
from nodeagent.cluster.known import Found, Gone, Known, Seen
from nodeagent.cluster.object_list import ObjectList
from nodeagent.cluster.projection import Raw, as_number, version_number, version_of
from nodeagent.mesh.backoff import Backoff

log = structlog.get_logger()

PAGE = 500
"""Objects in one answer to a list, as client-go asks for; the API server's cache sends all."""
WATCH_TIME = 300.0
"""Seconds after which the server ends a watch, at the least; at most twice that."""
SILENCE = 150.0
"""Seconds without a byte after which a watch is ended and a new one begun. Silence alone is no
fault: the server sends a bookmark once a minute at most, and in a cluster where nothing happens
none until etcd reports progress, by default every 10 min. The limit is for a connection that
is dead behind a proxy. A peer that is dead is noticed sooner, by the kernel (`cluster.api`)."""
RESUME_SPREAD = 1.0
"""Seconds within which a watch that has ended is resumed, at a random moment: after the restart
of an API server all agents of the cluster have lost their watches at once."""
RELIST_SPREAD = 10.0
"""Seconds within which a new list is asked for, where the watch cannot be resumed."""
LONGEST_WAIT = 10.0
"""Seconds between two tries at the most, where the server asks for no more."""
QUIET = 10.0
"""Seconds of trouble that are not logged: API servers are restarted, and proxies before them cut
connections. That the agent is denied something is logged at once."""
_LONGEST_REQUEST = 60.0
"""Seconds that the server may make the agent wait (``Retry-After``)."""
_STEADY = 10.0
"""Seconds after which a watch counts as a success, even if nothing came."""
_RESUMES = 5
"""Refusals to resume, after which the objects are listed again: where etcd was restored from a
backup, the server answers 504 for each version of before, without end."""
_EXPIRED = 410
_UNKNOWN_USER = 401
_NOT_THE_VERSION = frozenset({None, 401, 403, 429})
_TOO_LARGE = "ResourceVersionTooLarge"
"""The cause that the server gives where its own newest version is older than the one asked for."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource(Generic[T]):
    """What is followed, and what is made of it."""

    name: str
    """The plural, as in RBAC."""
    path: str
    selector: Mapping[str, str]
    key: Callable[[Raw], str]
    """What tells two objects apart. Raises ``ProjectionError`` for an odd object."""
    project: Callable[[Raw], T]
    """What is kept of an object. Raises ``ProjectionError`` for an odd object."""
    list_accept: str = JSON
    watch_accept: str = JSON
    own_namespace_only: bool = False
    """`path` is within the agent's own namespace: a Role grants it, not a ClusterRole."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A list has been told completely. Comes after each list."""


Change = Seen[T] | Gone | Listed


class ListWatch(Generic[T]):
    """Follows one resource; ask once for its `changes`."""

    def __init__(self, api: ApiServer, resource: Resource[T], *, silence: float = SILENCE) -> None:
        self._api = api
        self._resource = resource
        self._silence = silence
        self._known = Known(resource.key, resource.project, self._passed_over)
        self._version = ""
        """The version from which a watch resumes; "" before the first list."""
        self._consistent = False
        """Whether the server must read the next list from etcd instead of its cache."""
        self._failing_since: float | None = None
        self._trouble = ""
        """The trouble that was logged last, so that it is logged once; "" for none."""
        self._log = log.bind(resource=resource.name)

    async def ask(self, get: Callable[[], Awaitable[Raw | None]]) -> T | None:
        """Ask for one object, in order with the `changes`: see `Known.ask`."""
        return await self._known.ask(get)

    async def changes(self) -> AsyncGenerator[Change[T], None]:
        """Tell the objects and their changes, without end."""
        backoff = Backoff(longest=LONGEST_WAIT)
        while True:
            wait = 0.0
            try:
                async with contextlib.aclosing(self._from_list(backoff)) as changes:
                    async for change in changes:
                        yield change
            except ApiError as error:
                wait = self._failed("list", error)
                self._consistent |= error.status == _EXPIRED or _TOO_LARGE in error.causes
            else:
                wait = random.uniform(0, RELIST_SPREAD)  # noqa: S311 - spreads load
            await asyncio.sleep(max(wait, backoff.delay()))

    async def _from_list(self, backoff: Backoff) -> AsyncGenerator[Change[T], None]:
        """List, then watch, until the version to resume from is no longer good."""
        for difference in await self._list():
            yield difference
        yield Listed()
        refused, ended = 0, partial(self._api.observer.watch_ended, self._resource.name)
        while refused < _RESUMES:
            wait, began = 0.0, asyncio.get_running_loop().time()
            try:
                async with contextlib.aclosing(self._connection()) as news:
                    async for change in news:
                        refused = 0
                        backoff.reset()
                        if change is not None:
                            yield change
                ended("ended")
            except GarbledError as error:
                ended("garbled")
                # The same line would come again; a list does without it.
                self._failed("watch", error)
                return
            except SilenceError:
                ended("silent")
                self._log.debug("nothing was heard; watching anew", seconds=self._silence)
            except ApiError as error:
                ended("expired" if error.status == _EXPIRED else "failed")
                if error.status == _EXPIRED:
                    self._log.debug("too much was missed to resume; listing anew")
                    return
                refused += error.status not in _NOT_THE_VERSION
                wait = self._failed("watch", error)
            if asyncio.get_running_loop().time() - began > _STEADY:
                backoff.reset()
            spread = random.uniform(0, RESUME_SPREAD)  # noqa: S311 - spreads load
            await asyncio.sleep(max(wait, backoff.delay() + spread))
        self._consistent = True

    async def _connection(self) -> AsyncGenerator[Change[T] | None, None]:
        """Watch once, until the server ends it; None: nothing to tell. Raises ``ApiError``."""
        params = {
            **self._resource.selector,
            "watch": "1",
            "allowWatchBookmarks": "true",
            "resourceVersion": self._version,
            # Random, so that the watches of a cluster's agents do not end at one moment.
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
                self._api.observer.watch_heard(self._resource.name)
                kind, raw = _event(line)
                yield None if kind == "BOOKMARK" else self._changed(kind, raw)
                # Not before the event was told: else a resumption would leave it out.
                self._version = version_of(raw) or self._version

    async def _list(self) -> list[Seen[T] | Gone]:
        """List all objects; return what that changes. Raises ``ApiError``."""
        began, found = time.monotonic(), dict[str, Found[T]]()
        params = {**self._resource.selector, **self._freshness()}
        while True:
            async with self._api.download(
                self._resource.path, params=params, accept=self._resource.list_accept
            ) as pieces:
                page = ObjectList(pieces)
                async for raw in page.objects():
                    if (read := self._known.read(raw)) is not None:
                        key, value = read
                        found[key] = Found(value, version_number(raw))
            if not page.following:
                break
            # The first page's version holds for all of them.
            params = {**self._resource.selector, "limit": str(PAGE), "continue": page.following}
        self._api.observer.listed(self._resource.name, time.monotonic() - began)
        changes = self._known.become(found, as_number(page.version))
        self._version = page.version
        self._consistent = False
        self._works()
        return changes

    def _freshness(self) -> dict[str, str]:
        """Parameters that say how new a list has to be.

        A list from the API server's cache costs etcd nothing, so etcd is asked only where it
        has to be.

        https://kubernetes.io/docs/reference/using-api/api-concepts/#resource-versions
        """
        if self._consistent:
            return {"limit": str(PAGE)}
        if not self._version:
            # The limit counts only for a server that has no cache of the resource.
            return {"resourceVersion": "0", "limit": str(PAGE)}
        # With a limit, the server would not take it from its cache.
        return {"resourceVersion": self._version, "resourceVersionMatch": "NotOlderThan"}

    def _changed(self, kind: str, raw: Raw) -> Seen[T] | Gone | None:
        if (read := self._known.read(raw)) is None:
            return None
        key, value = read
        if kind == "DELETED":
            return self._known.deleted(key, version_number(raw))
        return self._known.exists(key, value, version_number(raw))

    def _passed_over(self, key: str, reason: str, ours: bool) -> None:
        self._log.warning("object passed over", key=key, reason=reason, exc_info=ours)

    def _failed(self, verb: str, error: ApiError) -> float:
        """Log the failure, once; return the seconds that the server wants the agent to wait."""
        now = asyncio.get_running_loop().time()
        self._failing_since = now if self._failing_since is None else self._failing_since
        told = error.denied or isinstance(error, GarbledError) or now - self._failing_since >= QUIET
        if told and (trouble := f"{verb} {error.status}") != self._trouble:
            self._trouble = trouble
            reason = str(error)
            if error.denied:
                reason = _denial(error, verb, self._resource, self._api.account)
            self._log.warning("cannot be followed; trying again", reason=reason)
        # Random, because other agents were told to wait for the same time.
        return min(error.retry_after or 0, _LONGEST_REQUEST) * random.uniform(1, 1.2)  # noqa: S311

    def _works(self) -> None:
        self._api.observer.watch_heard(self._resource.name)
        self._failing_since = None
        if self._trouble:
            self._trouble = ""
            self._log.info("followed again")


def _denial(error: ApiError, verb: str, resource: Resource[T], who: str) -> str:
    """What to tell people about a permission that is missing or a credential not taken."""
    scope, role = (
        ("here", "Role") if resource.own_namespace_only else ("at the cluster scope", "ClusterRole")
    )
    what = f"cannot {verb} {resource.name} {scope}"
    if error.status == _UNKNOWN_USER:
        return f"{what}: the API server does not take the credential of {who}: {error}"
    return f'{what}: {who} needs the {role} "nodeagent" (deploy/base/rbac.yaml)'


def _event(line: bytes) -> tuple[str, Any]:
    try:
        event = json.loads(line)
        kind, raw = event["type"], event["object"]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise GarbledError(f"a line of the watch is no event: {line[:80]!r}") from error
    if kind == "ERROR":
        raise status_error(raw)
    return kind, raw
