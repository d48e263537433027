"""What several tiers share, and which of them are left out here."""

import asyncio
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.cluster import binaries
from tests.cluster.control_plane import ControlPlane
from tests.cluster.manifests import DEPLOY, apply, build
from tests.cni import chains, libcni
from tests.runtime import containerd, image
from tests.virtual_time import VirtualLoop

settings.register_profile("gate", deadline=None)
settings.register_profile("fuzz", deadline=None, max_examples=5000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "gate"))


def pytest_asyncio_loop_factories(
    item: pytest.Item,
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    if item.get_closest_marker("virtual_time"):
        return {"virtual": VirtualLoop}
    return {"real": asyncio.new_event_loop}


def pytest_report_header() -> list[str]:
    no_cluster, no_runtime = binaries.missing(), containerd.missing()
    tiers = {
        "tests/cluster": no_cluster,
        "tests/runtime": no_runtime,
        "tests/node": no_cluster or no_runtime,
    }
    lines = [f"{tier} is left out: {reason}" for tier, reason in tiers.items() if reason]
    return [*lines, *filter(None, (libcni.missing(), chains.missing()))]


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


@pytest.fixture(scope="session")
def pod_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive with the program that all pods of the container runtime run."""
    return image.build(tmp_path_factory.mktemp("image"))
