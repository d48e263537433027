"""What tests of several rooms share, and what each test needs of this machine.

A need is a marker that a test gets by the fixtures that it asks for. The head of a run
says what is not here; tests with such a need are left out, or fail where nothing may be
left out (NODEAGENT_TESTS_ALL=1, as in CI). `pytest -m "not apiserver"` selects by need.
"""

import asyncio
import contextlib
import itertools
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings

from nodeagent.netns.threads import NetnsThreads
from tests.cluster import binaries
from tests.cluster.control_plane import ControlPlane
from tests.cluster.manifests import DEPLOY, apply, build
from tests.cluster.proxy import FaultProxy
from tests.cni import chains, libcni
from tests.deploy import built_image
from tests.lab.lab import Lab
from tests.lab.pod import Pod
from tests.runtime import containerd as runtime
from tests.runtime import image
from tests.runtime.containerd import Containerd
from tests.virtual_time import VirtualLoop

settings.register_profile("gate", deadline=None)
settings.register_profile("fuzz", deadline=None, max_examples=5000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "gate"))

_numbers = itertools.count(1)
_ALL = "NODEAGENT_TESTS_ALL"


@dataclass(frozen=True, slots=True)
class _Need:
    """Something that not every machine has."""

    marker: str
    fixtures: frozenset[str]
    """A test that asks for one of them needs it."""
    missing: Callable[[], str | None]
    """Why it is not here; None where it is."""


def _promtool_missing() -> str | None:
    return None if shutil.which("promtool") else "promtool, of Debian's package prometheus"


_NEEDS = (
    _Need("apiserver", frozenset({"control_plane"}), binaries.missing),
    _Need("helm", frozenset({"chart"}), binaries.helm_missing),
    _Need("promtool", frozenset({"promtool"}), _promtool_missing),
    _Need("runtime", frozenset({"containerd"}), runtime.missing),
    _Need("image", frozenset({"image_archive"}), built_image.missing),
    _Need("libcni", frozenset({"libcni_driver"}), libcni.missing),
    _Need("plugins", frozenset({"bridge"}), chains.missing),
)


def pytest_configure(config: pytest.Config) -> None:
    for need in _NEEDS:
        config.addinivalue_line("markers", f"{need.marker}: left out where that is not here")
    config.addinivalue_line("markers", "node: a whole node, with API server and runtime")


def pytest_report_header() -> list[str]:
    return [
        f"left out, -m {need.marker}: {reason}" for need in _NEEDS if (reason := need.missing())
    ]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    absent = {need.marker for need in _NEEDS if need.missing()}
    left_out = []
    for item in items:
        asked = set(getattr(item, "fixturenames", ()))
        needs = {need.marker for need in _NEEDS if asked & need.fixtures}
        for marker in needs:
            item.add_marker(marker)
        if {"apiserver", "runtime"} <= needs:
            item.add_marker("node")
        if needs & absent and os.environ.get(_ALL) != "1":
            left_out.append(item)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]


def pytest_asyncio_loop_factories(
    item: pytest.Item,
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    if item.get_closest_marker("virtual_time"):
        return {"virtual": VirtualLoop}
    return {"real": asyncio.new_event_loop}


@pytest.fixture
def xtables_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have iptables-legacy's lock where a test without root can write, too: not in /run."""
    monkeypatch.setenv("XTABLES_LOCKFILE", str(tmp_path / "xtables.lock"))


@pytest.fixture(scope="session")
def control_plane() -> Iterator[ControlPlane]:
    """A real kube-apiserver, for all tests of this process: what is made there stays."""
    try:
        found = binaries.find()
    except binaries.MissingError as error:
        pytest.fail(str(error))
    with ControlPlane(found) as control_plane:
        yield control_plane


@pytest.fixture(scope="session")
def deployed(control_plane: ControlPlane) -> ControlPlane:
    """The same, with `deploy/base` applied: ServiceAccount istio-system/nodeagent may work."""
    apply(control_plane.admin, build(DEPLOY / "base"))
    return control_plane


@pytest.fixture
def promtool() -> str:
    """The program with which Prometheus' rules are tested."""
    found = shutil.which("promtool")
    assert found, _promtool_missing()
    return found


@pytest.fixture
def chart() -> Path:
    """The chart in `deploy`, for tests that render it."""
    return DEPLOY / "chart"


@pytest.fixture
def namespace(control_plane: ControlPlane) -> str:
    """The name of a namespace in the API server that no other test has, without labels."""
    control_plane.admin.make_namespace(name := f"ns-{next(_numbers)}")
    return name


@pytest.fixture
def node_name() -> str:
    """The name of a node that no other test has; there is no Node object of the name."""
    return f"node-{next(_numbers)}"


@pytest.fixture
async def proxy(control_plane: ControlPlane) -> AsyncIterator[FaultProxy]:
    """In front of the API server; passes everything on until it is told otherwise."""
    async with FaultProxy(control_plane) as proxy:
        yield proxy


@pytest.fixture(scope="session")
def pod_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive with the program that all pods of the container runtime run."""
    return image.build(tmp_path_factory.mktemp("image"))


@pytest.fixture
async def containerd(pod_image: Path) -> AsyncIterator[Containerd]:
    """A real container runtime without pods; whatever is made in it ends with the test."""
    if lacking := runtime.missing():
        pytest.fail(f"no container runtime here: {lacking}")
    with tempfile.TemporaryDirectory(prefix="containerd-") as directory:
        async with Containerd(Path(directory), pod_image) as containerd:
            yield containerd


@pytest.fixture
def lab() -> Iterator[Lab]:
    """Pods as network namespaces, joined by a bridge."""
    with Lab() as made:
        yield made


@pytest.fixture
def pod(lab: Lab) -> Pod:
    """The one that gets rules."""
    return lab.add_pod("pod")


@pytest.fixture
def other(lab: Lab) -> Pod:
    """One outside the mesh, to talk to."""
    return lab.add_pod("other")


@pytest.fixture(params=[4, 6], ids=["v4", "v6"])
def version(request: pytest.FixtureRequest) -> int:
    """The IP version that a test is about."""
    number: int = request.param
    return number


@pytest.fixture
def threads() -> Iterator[NetnsThreads]:
    """Threads that enter network namespaces."""
    with contextlib.closing(NetnsThreads()) as pool:
        yield pool
