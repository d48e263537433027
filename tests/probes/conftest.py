"""A host for the probe set, in a network namespace of its own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.ipsets import IptablesHost, new_iptables_host


@pytest.fixture(autouse=True)
def _xtables_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # /run is not ours to write to where the tests run without root.
    monkeypatch.setenv("XTABLES_LOCKFILE", str(tmp_path / "xtables.lock"))


@pytest.fixture
def host() -> Iterator[IptablesHost]:
    """A host that nothing has happened in."""
    with new_iptables_host() as host:
        yield host
