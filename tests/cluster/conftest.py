"""A namespace and a node for each test, in the control plane of tests/conftest.py."""

import pytest

from nodeagent.cluster import listwatch


@pytest.fixture(autouse=True)
def _no_fleet(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is one agent here: nobody with whom it must not come back together."""
    monkeypatch.setattr(listwatch, "RESUME_SPREAD", 0.0)
    monkeypatch.setattr(listwatch, "RELIST_SPREAD", 0.0)
