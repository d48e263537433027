"""The namespaces of real sandboxes are found, through CRI and through procfs."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from ipaddress import ip_address
from pathlib import Path

import pytest

from nodeagent.mesh.errors import RetryError
from nodeagent.mesh.pod import CONFIG_HASH, CONFIG_MIRROR, Pod, PodUID
from nodeagent.netns import procfs
from nodeagent.netns.cri import ENDPOINTS, ContainerRuntime, RuntimeSandboxes
from nodeagent.netns.finding import NodeNetnsFinder, opened_finder
from nodeagent.netns.netns import NetnsId
from nodeagent.netns.procfs import Processes
from nodeagent.netns.threads import NetnsThreads
from nodeagent.netns.verify import Verifier, host_netns_ids
from tests.eventually import PATIENCE
from tests.runtime.containerd import Containerd

UID = "2c48913c-b29f-11e7-9350-020968147796"
OTHER = "72f7f152-440c-66ac-9084-e0fc1d8a910c"


class Counted(ContainerRuntime):
    """Counts the lists that are asked for."""

    lists = 0

    async def sandboxes(self) -> Mapping[str, Sequence[str]]:
        self.lists += 1
        return await super().sandboxes()


@pytest.fixture
def verifier() -> Iterator[Verifier]:
    with contextlib.closing(NetnsThreads(2)) as threads:
        yield Verifier(threads, host_netns_ids(None))


@pytest.fixture
async def runtime(containerd: Containerd) -> AsyncIterator[Counted]:
    made = Counted(endpoint=containerd.endpoint, prefix="")
    try:
        yield made
    finally:
        await made.close()


async def a_pod(containerd: Containerd, sandbox: str, uid: str = UID) -> Pod:
    """What the API says of a pod that runs in `sandbox`."""
    return Pod(
        uid=PodUID(uid),
        name="web",
        namespace="shop",
        addresses=await containerd.addresses(sandbox),
    )


async def found_in(finder: NodeNetnsFinder, pod: Pod) -> NetnsId:
    with await finder.find(pod, None) as found:
        return found.id


async def netns_of(containerd: Containerd, sandbox: str) -> NetnsId:
    return NetnsId.of_path(f"/proc/{await containerd.pid(sandbox)}/ns/net")


def open_netns() -> list[str]:
    links = Path("/proc/self/fd").iterdir()
    return sorted(where for link in links if (where := _leads_to(link)).startswith("net:"))


def _leads_to(link: Path) -> str:
    try:
        return str(link.readlink())
    except FileNotFoundError:  # the one that lists them
        return ""


async def test_both_ways(containerd: Containerd, runtime: Counted, verifier: Verifier) -> None:
    """The runtime and procfs lead to one namespace, the sandbox's own, on either address."""
    sandbox = await containerd.run_sandbox("web", "shop", UID)
    await containerd.run_sandbox("other", "shop", OTHER)
    pod = await a_pod(containerd, sandbox)
    expected = await netns_of(containerd, sandbox)
    assert [address.version for address in pod.addresses] == [4, 6]
    for way in (RuntimeSandboxes(runtime), Processes("")):
        assert await found_in(NodeNetnsFinder(verifier, way, prefix=""), pod) == expected
    assert (await runtime.version()).name == "containerd"


async def test_one_look_for_250_pods(
    containerd: Containerd,
    runtime: Counted,
    verifier: Verifier,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """250 pods at start-up cost one list call and one pass over procfs; their next look none."""
    passes: list[str] = []
    scan = procfs.scan_processes

    def counted(proc: str) -> Mapping[str, Sequence[int]]:
        passes.append(proc)
        return scan(proc)

    monkeypatch.setattr(procfs, "scan_processes", counted)
    sandbox = await containerd.run_sandbox("web", "shop", UID)
    pod = await a_pod(containerd, sandbox)
    unknown = [
        Pod(uid=PodUID(f"uid-{n}"), name="no", namespace="shop", addresses=pod.addresses)
        for n in range(249)
    ]
    finder = NodeNetnsFinder(verifier, RuntimeSandboxes(runtime), Processes(""), prefix="")
    first, *rest = await asyncio.gather(
        *(found_in(finder, one) for one in (pod, *unknown)), return_exceptions=True
    )
    assert first == await netns_of(containerd, sandbox)
    assert all(isinstance(error, RetryError) for error in rest)
    assert runtime.lists == len(passes) == 1
    assert await found_in(finder, pod) == first
    assert runtime.lists == len(passes) == 1


async def test_sandbox_made_again(
    containerd: Containerd, runtime: Counted, verifier: Verifier
) -> None:
    """L14: the sandbox that replaced another under the same UID is found, never the old one."""
    old = await containerd.run_sandbox("web", "shop", UID)
    pod = await a_pod(containerd, old)
    finders = [
        NodeNetnsFinder(verifier, RuntimeSandboxes(runtime), prefix=""),
        NodeNetnsFinder(verifier, Processes(""), prefix=""),
    ]
    held = await finders[0].find(pod, None)  # or the kernel gives its inode to the next
    assert await found_in(finders[1], pod) == held.id
    await containerd.stop_sandbox(old)
    for finder in finders:
        with pytest.raises(RetryError):
            await finder.find(pod, None)
    new = await containerd.run_sandbox("web", "shop", UID)
    pod = await a_pod(containerd, new)
    expected = await netns_of(containerd, new)
    assert [await found_in(finder, pod) for finder in finders] == [expected] * 2
    assert expected != held.id
    held.close()


async def test_runtime_goes_and_comes(
    containerd: Containerd, runtime: Counted, verifier: Verifier
) -> None:
    """While the runtime is away procfs serves; when it is back, it is asked on its own again."""
    sandbox = await containerd.run_sandbox("web", "shop", UID)
    pod = await a_pod(containerd, sandbox)
    expected = await netns_of(containerd, sandbox)

    async def asked_alone() -> NetnsId:
        return await found_in(NodeNetnsFinder(verifier, RuntimeSandboxes(runtime), prefix=""), pod)

    assert await asked_alone() == expected
    await containerd.kill()
    with pytest.raises(RetryError, match="container runtime answers ListPodSandbox with UNAVAIL"):
        await asked_alone()
    both = NodeNetnsFinder(verifier, RuntimeSandboxes(runtime), Processes(""), prefix="")
    assert await found_in(both, pod) == expected
    await containerd.start()
    async with asyncio.timeout(PATIENCE):
        while True:
            with contextlib.suppress(RetryError):
                assert await asked_alone() == expected
                break
            await asyncio.sleep(0.02)


async def test_gone_between_finding_and_entering(
    containerd: Containerd, runtime: Counted, verifier: Verifier
) -> None:
    """A sandbox that ends while it is looked for is no crash and no leak: it is tried again."""
    sandbox = await containerd.run_sandbox("web", "shop", UID)
    pod = await a_pod(containerd, sandbox)

    class Late(RuntimeSandboxes):
        async def paths(self, uid: str) -> Sequence[str]:
            paths = await super().paths(uid)
            await containerd.remove_sandbox(sandbox)
            return paths

    before = open_netns()
    with pytest.raises(RetryError):
        await NodeNetnsFinder(verifier, Late(runtime), prefix="").find(pod, None)
    both = NodeNetnsFinder(verifier, RuntimeSandboxes(runtime), Processes(""), prefix="")
    with pytest.raises(RetryError, match=r"no sandbox of the pod.*no process is in a cgroup"):
        await both.find(pod, None)
    assert open_netns() == before
    with pytest.raises(RetryError, match="PodSandboxStatus with NOT_FOUND"):
        await runtime.netns_paths(sandbox)


async def test_process_that_passes_through(containerd: Containerd, verifier: Verifier) -> None:
    """L10: a pod's oldest process is in another pod's namespace, and the pod's own is found."""
    other = await containerd.run_sandbox("other", "shop", OTHER)
    passing = await asyncio.create_subprocess_exec(
        *("sh", "-c", 'read go && exec nsenter --net="$0" sleep 60', await containerd.netns(other)),
        stdin=asyncio.subprocess.PIPE,
    )
    try:
        sandbox = await containerd.run_sandbox("web", "shop", UID)
        for group in await containerd.cgroups(sandbox):
            (group / "cgroup.procs").write_text(str(passing.pid))
        assert passing.stdin is not None
        passing.stdin.write(b"go\n")
        theirs = await netns_of(containerd, other)
        while NetnsId.of_path(f"/proc/{passing.pid}/ns/net") != theirs:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        way = Processes("")
        first, *_ = await way.paths(UID)
        assert first == f"/proc/{passing.pid}/ns/net"
        pod = await a_pod(containerd, sandbox)
        found = await found_in(NodeNetnsFinder(verifier, way, prefix=""), pod)
        assert found == await netns_of(containerd, sandbox) != theirs
    finally:
        passing.kill()
        await passing.wait()


async def test_borrowed_name_and_address(
    containerd: Containerd, runtime: Counted, verifier: Verifier
) -> None:
    """L39: a pod with a cgroup that has another pod's name, and that pod's address on its
    loopback, is not taken for it, though its process is the older one.
    """
    attacker = await containerd.run_sandbox("attacker", "shop", OTHER)
    process = await asyncio.create_subprocess_exec(
        *("nsenter", f"--net={await containerd.netns(attacker)}", "sleep", "60"),
    )
    nested = []
    try:
        for group in await containerd.cgroups(attacker):
            # A cpuset needs more than to be made.
            inner = group if "cpuset" in str(group) else group / f"pod{UID}"
            if inner is not group:
                inner.mkdir()
                nested.append(inner)
            (inner / "cgroup.procs").write_text(str(process.pid))
        assert f"pod{UID}" in Path(f"/proc/{process.pid}/cgroup").read_text()
        sandbox = await containerd.run_sandbox("web", "shop", UID)
        pod = await a_pod(containerd, sandbox)
        for address in pod.addresses:
            await run_in(await containerd.netns(attacker), f"ip address add {address} dev lo")
        theirs, ours = await netns_of(containerd, attacker), await netns_of(containerd, sandbox)
        for way in (Processes(""), RuntimeSandboxes(runtime)):
            assert await found_in(NodeNetnsFinder(verifier, way, prefix=""), pod) == ours != theirs
        assert f"/proc/{process.pid}/ns/net" not in await Processes("").paths(UID)
    finally:
        process.kill()
        await process.wait()
        for group in nested:
            group.rmdir()


async def run_in(netns: str, command: str) -> None:
    running = await asyncio.create_subprocess_exec("nsenter", f"--net={netns}", *command.split())
    assert await running.wait() == 0


async def test_host_network(containerd: Containerd, runtime: Counted, verifier: Verifier) -> None:
    """A sandbox in the host's namespace is never found, even by an address of the host."""
    await containerd.run_sandbox("agent", "shop", UID, host_network=True)
    await containerd.run_sandbox("web", "shop", OTHER)  # gives the bridge its address
    pod = Pod(uid=PodUID(UID), name="agent", namespace="shop", addresses=(ip_address("10.77.0.1"),))
    for way in (RuntimeSandboxes(runtime), Processes("")):
        with pytest.raises(RetryError, match="is the host's network namespace"):
            await NodeNetnsFinder(verifier, way, prefix="").find(pod, None)


async def test_static_pod(containerd: Containerd, runtime: Counted, verifier: Verifier) -> None:
    """A mirror pod's own UID is unknown on the node: the hash of its manifest is asked for."""
    sandbox = await containerd.run_sandbox("etcd", "shop", digest := UID.replace("-", ""))
    pod = Pod(
        uid=PodUID(OTHER),
        name="etcd",
        namespace="shop",
        annotations={CONFIG_HASH: digest, CONFIG_MIRROR: digest},
        addresses=await containerd.addresses(sandbox),
    )
    for way in (RuntimeSandboxes(runtime), Processes("")):
        found = await found_in(NodeNetnsFinder(verifier, way, prefix=""), pod)
        assert found == await netns_of(containerd, sandbox)


async def test_in_a_container(containerd: Containerd, verifier: Verifier, tmp_path: Path) -> None:
    """Under a prefix the usual socket is found, and a path that is not mounted is got around."""
    sandbox = await containerd.run_sandbox("web", "shop", UID)
    pod = await a_pod(containerd, sandbox)
    (tmp_path / "proc").mkdir()
    endpoint = Path(f"{tmp_path}{ENDPOINTS[0]}")
    endpoint.parent.mkdir(parents=True)
    async with opened_finder(verifier, endpoint="", prefix=str(tmp_path)) as finder:
        with pytest.raises(RetryError, match=r"no container runtime listens at .*containerd\.sock"):
            await finder.find(pod, None)
        endpoint.symlink_to(containerd.endpoint)
        (tmp_path / f"proc/{await containerd.pid(sandbox)}").symlink_to(
            f"/proc/{await containerd.pid(sandbox)}"
        )
        assert await found_in(finder, pod) == await netns_of(containerd, sandbox)


async def test_socket_that_nobody_listens_at(
    containerd: Containerd, verifier: Verifier, tmp_path: Path
) -> None:
    """A socket that a former runtime has left does not stand before the one that is in use."""
    sandbox = await containerd.run_sandbox("web", "shop", UID)
    pod = await a_pod(containerd, sandbox)
    first, *_, last = (Path(f"{tmp_path}{endpoint}") for endpoint in ENDPOINTS)
    for path in (first, last):
        path.parent.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(first))
    last.symlink_to(containerd.endpoint)
    runtime = ContainerRuntime(endpoint="", prefix=str(tmp_path))
    try:
        found = await found_in(NodeNetnsFinder(verifier, RuntimeSandboxes(runtime), prefix=""), pod)
        assert found == await netns_of(containerd, sandbox)
        assert (await runtime.version()).name == "containerd"
    finally:
        await runtime.close()
