"""Needs: the sandbox of tests/sandbox.py, and the `ip` program."""

import contextlib
from collections.abc import Iterator

import pytest

from nodeagent.netns.threads import NamespaceThreads
from tests.lab.lab import Lab


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as made:
        yield made


@pytest.fixture
def threads() -> Iterator[NamespaceThreads]:
    with contextlib.closing(NamespaceThreads()) as pool:
        yield pool
