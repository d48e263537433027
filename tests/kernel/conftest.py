"""Pods to try the rules in."""

from collections.abc import Iterator

import pytest

from tests.lab.lab import Lab
from tests.lab.pod import Pod


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


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
