"""A pod's namespace is found by whatever way leads to it, and is the pod's."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from nodeagent.mesh.errors import RetryError
from nodeagent.mesh.pod import Pod, PodUID
from nodeagent.netns import finding
from nodeagent.netns.finding import NodeNetnsFinder
from nodeagent.netns.netns import NetnsId
from nodeagent.netns.threads import NetnsThreads
from nodeagent.netns.verify import Verifier
from tests.descriptors import open_descriptors
from tests.eventually import eventually
from tests.lab.lab import Lab
from tests.lab.pod import Pod as LabPod


class Told:
    """A way that says what it is told to, and counts how often it is asked."""

    def __init__(self, name: str, *paths: str) -> None:
        self.name = name
        self.said: Sequence[str] = paths
        self.asked = 0

    async def paths(self, uid: str) -> Sequence[str]:
        self.asked += 1
        if not self.said:
            raise RetryError(f"knows nothing of {uid}")
        return self.said


def a_pod(lab_pod: LabPod, uid: str = "1") -> Pod:
    return Pod(uid=PodUID(uid), name="web", namespace="shop", addresses=(lab_pod.v4,))


def finder_of(threads: NetnsThreads, *ways: Told, prefix: str = "") -> NodeNetnsFinder:
    return NodeNetnsFinder(
        Verifier(threads, [NetnsId.of_path("/proc/self/ns/net")]), *ways, prefix=prefix
    )


async def found_in(finder: NodeNetnsFinder, pod: Pod, handed_over: str | None = None) -> NetnsId:
    with await finder.find(pod, handed_over) as found:
        return found.id


async def test_handed_over(lab: Lab, threads: NetnsThreads) -> None:
    """What the CNI plugin hands over is taken first, and nobody else is asked."""
    pod, way = lab.add_pod("web"), Told("runtime")
    found = await found_in(finder_of(threads, way), a_pod(pod), pod.path)
    assert found == NetnsId.of_path(pod.path)
    assert way.asked == 0


async def test_foreign_netns_are_passed_over(lab: Lab, threads: NetnsThreads) -> None:
    """L10: another pod's, the host's and none at all lead on to the way that has the pod's."""
    pod, other = lab.add_pod("web"), lab.add_pod("other")
    before = open_descriptors()
    ways = (Told("runtime", "/proc/self/ns/net", other.path), Told("procfs", "/none", pod.path))
    found = await found_in(finder_of(threads, *ways), a_pod(pod), other.path)
    assert found == NetnsId.of_path(pod.path)
    assert open_descriptors() == before


async def test_what_each_way_said(lab: Lab, threads: NetnsThreads) -> None:
    """L4: a namespace that nothing leads to is tried again, with every reason in one line."""
    pod, other = lab.add_pod("web"), lab.add_pod("other")
    before = open_descriptors()
    ways = (Told("runtime"), Told("procfs", "/proc/self/ns/net", "/none"))
    with pytest.raises(RetryError) as caught:
        await finder_of(threads, *ways).find(a_pod(pod), other.path)
    text = str(caught.value)
    for reason in (
        f"CNI: net:[{NetnsId.of_path(other.path).inode}] holds none of the pod's addresses",
        "runtime: knows nothing of 1",
        "is the host's network namespace",
        "procfs: cannot open /none: No such file",
    ):
        assert reason in text
    assert "\n" not in text
    assert open_descriptors() == before


@pytest.mark.parametrize("path", ["relative", "", "/a\nb", "/a\0b", "/" * 5000])
async def test_path_that_is_none(lab: Lab, threads: NetnsThreads, path: str) -> None:
    """A path that cannot be one is refused without being opened, or being repeated."""
    with pytest.raises(RetryError, match=r"\(CNI: no absolute path was handed over\)"):
        await finder_of(threads).find(a_pod(lab.add_pod("web")), path)


async def test_remembered(lab: Lab, threads: NetnsThreads) -> None:
    """A namespace that was found once is looked for again only when its path leads elsewhere."""
    pod, way = lab.add_pod("web"), Told("runtime")
    way.said = (pod.path,)
    finder = finder_of(threads, way)
    for _ in range(3):
        await found_in(finder, a_pod(pod))
    assert way.asked == 1
    lab.delete(pod)
    with pytest.raises(RetryError):
        await finder.find(a_pod(pod), None)
    again = lab.add_pod("again")
    way.said = (again.path,)
    assert await found_in(finder, a_pod(again)) == NetnsId.of_path(again.path)
    assert way.asked == 3


async def test_memory_is_bounded(
    lab: Lab, threads: NetnsThreads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of pods that come and go, only the latest are remembered."""
    monkeypatch.setattr(finding, "MOST_REMEMBERED", 2)
    pod, way = lab.add_pod("web"), Told("runtime")
    way.said = (pod.path,)
    finder = finder_of(threads, way)
    for uid in ("1", "2", "1", "3", "1"):
        await found_in(finder, a_pod(pod, uid))
    assert way.asked == 3
    await found_in(finder, a_pod(pod, "2"))
    assert way.asked == 4


async def test_prefix(lab: Lab, threads: NetnsThreads) -> None:
    """In a container the host's paths are under a prefix."""
    pod = lab.add_pod("web")
    finder = finder_of(threads, prefix="/proc/self/root")
    assert await found_in(finder, a_pod(pod), pod.path) == NetnsId.of_path(pod.path)
    with pytest.raises(RetryError, match="cannot open /nowhere/"):
        await finder_of(threads, prefix="/nowhere").find(a_pod(pod), pod.path)


async def test_pod_without_address(threads: NetnsThreads) -> None:
    """A pod without an address waits for one; nobody is asked in vain."""
    way = Told("runtime")
    with pytest.raises(RetryError, match="no address yet"):
        await finder_of(threads, way).find(
            Pod(uid=PodUID("1"), name="web", namespace="shop"), "/proc/self/ns/net"
        )
    assert way.asked == 0


async def test_cancelled_on_the_way(lab: Lab, threads: NetnsThreads) -> None:
    """A search that is cut off at any step leaves no descriptor open."""
    pod = lab.add_pod("web")
    finder = finder_of(threads, Told("runtime", "/none", pod.path))
    before = open_descriptors()
    for steps in range(12):
        searching = asyncio.create_task(found_in(finder, a_pod(pod)), name="search")
        for _ in range(steps):
            await asyncio.sleep(0)
        searching.cancel()
        await asyncio.wait([searching])
    # The jobs that were cut off end in threads of their own.
    await eventually(lambda: open_descriptors() == before)


async def test_held_netns_is_not_looked_into_again(lab: Lab, threads: NetnsThreads) -> None:
    """L25: the look of every minute costs one stat for as long as nothing has changed."""
    pod, way = lab.add_pod("web"), Told("runtime")
    finder = finder_of(threads, way)
    with await finder.find(a_pod(pod), pod.path) as held:
        pod.shell("ip address flush dev eth0")  # which a look inside would see
        assert await finder.find(a_pod(pod), pod.path, held) is held
        assert await finder.find(a_pod(pod), None, held) is held
        assert way.asked == 0


@pytest.mark.parametrize("change", ["path", "gone", "handed over", "addresses"])
async def test_held_netns_is_left_for_what_is_the_pods_now(
    lab: Lab, threads: NetnsThreads, tmp_path: Path, change: str
) -> None:
    """L10, L14: another namespace, other addresses or another path: all is verified anew."""
    one, other = lab.add_pod("web"), lab.add_pod("other")
    path = tmp_path / "netns"
    path.symlink_to(one.path)
    pod, handed_over = replace(a_pod(one), addresses=(one.v4, other.v4)), str(path)
    finder = finder_of(threads, Told("runtime", other.path))
    with await finder.find(pod, handed_over) as held:
        assert held.id == NetnsId.of_path(one.path)
        match change:
            case "path":
                path.unlink()
                path.symlink_to(other.path)
            case "gone":
                path.unlink()
            case "handed over":
                handed_over = other.path
            case "addresses":
                pod = replace(pod, addresses=(other.v4,))
        with await finder.find(pod, handed_over, held) as found:
            assert found.id == NetnsId.of_path(other.path)


async def test_who_named_it(lab: Lab, threads: NetnsThreads) -> None:
    """For people: the path of the netns, and who named it first, however often it was found."""
    pod, way = lab.add_pod("web"), Told("runtime", "/none")
    way.said = [pod.path]
    finder = finder_of(threads, way)
    assert finder.found_at(a_pod(pod)) == ""
    for _ in range(3):
        await found_in(finder, a_pod(pod))
        assert finder.found_at(a_pod(pod)) == f"{pod.path}, named by runtime"
    await found_in(finder, a_pod(pod), pod.path)
    assert finder.found_at(a_pod(pod)) == f"{pod.path}, named by CNI"
