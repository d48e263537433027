"""A node whose CNI directories are real, without a container runtime."""

from pathlib import Path

import pytest

from tests.cni.install.installing import Node


@pytest.fixture
def node(tmp_path: Path) -> Node:
    """Its directories, empty."""
    return Node(tmp_path)
