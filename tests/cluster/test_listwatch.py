"""Whatever a watch or a list says, the objects in it that are right are told."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.cluster import listwatch, projection
from nodeagent.cluster.api import ApiServer
from nodeagent.cluster.known import Gone, Seen
from nodeagent.cluster.listwatch import Listed, ListWatch, Resource
from nodeagent.mesh.pod import Pod
from nodeagent.observer import Observer
from tests.eventually import PATIENCE

PODS = Resource(
    name="pods", path="/pods", selector={}, key=projection.pod_uid, project=projection.pod
)


@pytest.fixture(autouse=True)
def _no_fleet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listwatch, "RESUME_SPREAD", 0.0)
    monkeypatch.setattr(listwatch, "RELIST_SPREAD", 0.0)


class Scripted(ApiServer):
    """Gives these lists and lines, each once; then it is silent for ever."""

    def __init__(self, lists: Sequence[Any], *watches: Sequence[bytes]) -> None:
        self._lists, self._watches = list(lists), list(watches)

    @property
    def account(self) -> str:
        return "nobody"

    @contextlib.asynccontextmanager
    async def download(
        self, path: str, *, params: Mapping[str, str], accept: str
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        del path, params, accept

        async def pieces() -> AsyncIterator[bytes]:
            yield json.dumps(self._lists.pop(0)).encode()

        yield pieces()

    @contextlib.asynccontextmanager
    async def stream(
        self, path: str, *, params: Mapping[str, str], accept: str, silence: float
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        del path, params, accept, silence

        async def lines() -> AsyncIterator[bytes]:
            for line in self._watches.pop(0):
                yield line
            await asyncio.Event().wait()

        yield lines()


def a_pod(name: str) -> dict[str, Any]:
    metadata = {"name": name, "namespace": "shop", "uid": f"uid-{name}", "resourceVersion": "9"}
    return {"metadata": metadata, "spec": {"nodeName": "n"}, "status": {}}


def a_list(*items: Any, version: str = "1") -> dict[str, Any]:
    return {"metadata": {"resourceVersion": version}, "items": list(items)}


def event(kind: Any, raw: Any) -> bytes:
    return json.dumps({"type": kind, "object": raw}).encode()


async def told(api: ApiServer, last: str, resource: Resource[Pod] = PODS) -> list[str]:
    """What is told until the pod of the name `last` has been."""
    names: list[str] = []
    async with (
        asyncio.timeout(PATIENCE),
        contextlib.aclosing(ListWatch(api, resource).changes()) as changes,
    ):
        async for change in changes:
            match change:
                case Seen(pod):
                    names.append(pod.name)
                    if pod.name == last:
                        return names
                case Gone(key):
                    names.append(f"not {key}")
                case Listed():
                    names.append("listed")
    raise AssertionError("it has ended")


async def test_what_becomes_of_a_watch_is_told() -> None:
    """An observer hears of lists, of how watches end, and that something has come at all."""
    heard: list[str] = []

    class Heard(Observer):
        def listed(self, resource: str, seconds: float) -> None:
            assert seconds >= 0
            heard.append(f"{resource} listed")

        def watch_heard(self, resource: str) -> None:
            heard.append(resource)

        def watch_ended(self, resource: str, cause: str) -> None:
            heard.append(f"{resource} {cause}")

    expired = event("ERROR", {"code": 410, "message": "too old"})
    api = Scripted(
        [a_list(a_pod("first")), a_list(a_pod("last"))],
        [event("ADDED", a_pod("second")), expired],
    )
    api.observer = Heard()
    await told(api, "last")
    assert heard == [
        *("pods listed", "pods"),
        *("pods", "pods", "pods", "pods expired"),
        *("pods listed", "pods"),
    ]


texts = st.text(max_size=4) | st.just("\ud800") | st.just("9" * 300)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)


@st.composite
def odd_pods(draw: st.DrawFn) -> Any:
    """Anything, or a pod with anything in one of its fields."""
    if draw(st.booleans()):
        return draw(json_values)
    raw = a_pod("odd")
    part = draw(st.sampled_from(["metadata", "spec", "status"]))
    of_metadata = ("uid", "name", "namespace", "labels", "annotations", "resourceVersion")
    others = ("deletionTimestamp", "podIP", "podIPs", "phase", "hostNetwork", "nodeName")
    field = draw(st.sampled_from((*of_metadata, *others)))
    raw[part][field] = draw(json_values)
    return raw


@pytest.mark.fuzz
@given(st.lists(st.tuples(st.sampled_from(["ADDED", "DELETED", "?", "BOOKMARK"]), odd_pods())))
async def test_odd_objects_in_a_watch(odd: list[tuple[str, Any]]) -> None:
    """No object, however odd, ends a watch: what comes behind it is told, without a new list."""
    lines = [event(kind, raw) for kind, raw in odd]
    api = Scripted([a_list(a_pod("first"))], [*lines, event("ADDED", a_pod("last"))])
    names = await told(api, "last")
    assert names[:2] == ["first", "listed"]
    assert names.count("listed") == 1


@pytest.mark.fuzz
@given(st.lists(odd_pods(), max_size=5))
async def test_odd_objects_in_a_list(odd: list[Any]) -> None:
    """Nor does it keep a list from being told."""
    names = await told(Scripted([a_list(*odd, a_pod("last"))]), "last")
    assert "listed" not in names


lines = st.one_of(
    st.binary(max_size=20),
    json_values.map(lambda value: json.dumps(value).encode()),
    st.tuples(json_values, json_values).map(lambda pair: event(*pair)),
    st.tuples(st.just("ERROR"), json_values).map(lambda pair: event(*pair)),
    st.tuples(st.just("ADDED"), odd_pods()).map(lambda pair: event(*pair)),
    st.just(b"[" * 100_000),
    st.just(b'{"type": "ADDED", "object": ' + b"9" * 10_000 + b"}"),
    st.tuples(st.just("ADDED"), odd_pods()).map(lambda pair: event(*pair)[:-7]),
)


@pytest.mark.fuzz
@given(st.lists(lines, max_size=3))
async def test_any_lines(odd: list[bytes]) -> None:
    """Whatever the lines are, torn, huge or of other types, the next list or watch goes on."""
    lists = [a_list(version=str(number)) for number in range(1, 9)]
    # Each line can end one watch, and each watch says the last pod behind its lines.
    watches = [[*odd[number:], event("ADDED", a_pod("last"))] for number in range(len(odd) + 1)]
    assert (await told(Scripted(lists, *watches), "last"))[-1] == "last"


@pytest.mark.fuzz
@given(json_values, json_values, json_values)
async def test_any_list(items: Any, metadata: Any, more: Any) -> None:
    """A list in another shape is asked for again, and its objects are no half list."""
    page = {"items": items, "metadata": metadata}
    follows = a_list(a_pod("last"))
    odd = {"items": [], "metadata": {"resourceVersion": "1", "continue": more}}
    api = Scripted([page, odd, *[follows] * 3], [event("ADDED", a_pod("last"))])
    assert (await told(api, "last"))[-1] == "last"


async def test_list_is_read_while_it_arrives() -> None:
    """No list is parsed in one go: an object is projected before the next one is sent (L34)."""
    projected = asyncio.Event()

    def project(raw: projection.Raw) -> Any:
        projected.set()
        return projection.pod(raw)

    class Slow(Scripted):
        @contextlib.asynccontextmanager
        async def download(
            self, path: str, *, params: Mapping[str, str], accept: str
        ) -> AsyncIterator[AsyncIterator[bytes]]:
            del path, params, accept

            async def pieces() -> AsyncIterator[bytes]:
                start, end = b'{"metadata":{"resourceVersion":"1"},"items":[', b"]}"
                first, last = (json.dumps(a_pod(name)).encode() for name in ("first", "last"))
                yield start + first + b","
                await projected.wait()
                yield last + end

            yield pieces()

    resource = Resource(
        name="pods", path="/pods", selector={}, key=projection.pod_uid, project=project
    )
    assert await told(Slow([]), "last", resource) == ["first", "last"]


async def test_our_own_fault() -> None:
    """What we do wrong with one object costs no other one its news."""

    def project(raw: projection.Raw) -> Any:
        if raw["metadata"]["name"] == "odd":
            raise ZeroDivisionError
        return projection.pod(raw)

    resource = Resource(
        name="pods", path="/pods", selector={}, key=projection.pod_uid, project=project
    )
    api = Scripted([a_list(a_pod("odd"), a_pod("last"))])
    async with contextlib.aclosing(ListWatch(api, resource).changes()) as changes:
        async for change in changes:
            assert isinstance(change, Seen)
            assert change.value.name == "last"
            break
