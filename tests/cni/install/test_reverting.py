"""The throttle of repairs, in virtual time, and who is known to revert."""

import pytest

from nodeagent.cni.install.reverting import RepairThrottle, likely_cause


def test_first_repair_is_immediate() -> None:
    """L3: the first repair waits for nothing, the second for a second."""
    throttle = RepairThrottle()
    assert throttle.wait(100.0) == 0
    throttle.repaired(100.0)
    assert throttle.wait(100.25) == 0.75
    assert throttle.wait(101.0) == 0


def test_slower_and_said_once() -> None:
    """A reverter that never stops is met less and less often, and named once in a row."""
    throttle, now = RepairThrottle(), 0.0
    waits, said = [], []
    for _ in range(10):
        said.append(throttle.repaired(now))
        waits.append(throttle.wait(now))
        now += waits[-1]
    assert waits == [1, 1, 2, 4, 8, 16, 30, 30, 30, 30]
    assert said.count(True) == 1
    throttle.repaired(now + 100)
    assert throttle.wait(now + 100) == 1


def test_following_the_primary_is_no_repair() -> None:
    """What changed of itself is copied once a second at most, and makes no habit."""
    throttle = RepairThrottle()
    for now in range(5):
        throttle.wrote(float(now))
        assert throttle.wait(now + 0.5) == 0.5
    assert not throttle.repaired(5.0)


@pytest.mark.parametrize(
    ("traces", "own_file", "expected"),
    [
        (["05-cilium.conflist", "portmap"], True, "cni.exclusive=false"),
        (["10-x.conflist", "cilium-cni"], False, "cni.exclusive=false"),
        (["10-calico.conflist"], False, "ISTIO_OWNED_CNI_CONFIG=true"),
        (["00-multus.conf"], False, "Multus"),
        (["10-calico.conflist", "istio-cni"], True, "uninstall it"),
    ],
)
def test_likely_causes(traces: list[str], own_file: bool, expected: str) -> None:
    """Known components are told by their files and plugins, with the setting that ends it."""
    assert expected in likely_cause(traces, own_file=own_file)


def test_nobody_known() -> None:
    """Whoever is not known is not accused; nor is a list's owner when our file is our own."""
    assert likely_cause(["10-x.conflist", "bridge"], own_file=False) == ""
    assert likely_cause(["10-calico.conflist", "calico"], own_file=True) == ""
