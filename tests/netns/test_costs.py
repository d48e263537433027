"""The account of what the work in one netns has cost (L36)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.netns.costs import Account, Cost, Limits


class Clock:
    """Stands still until it is moved."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


STEPS = st.lists(st.tuples(st.floats(0, 100), st.floats(0, 0.5)), max_size=60)


@given(STEPS)
def test_what_a_pod_can_cost(steps: list[tuple[float, float]]) -> None:
    """Whatever a pod does and when: its cost is bounded by its allowance and the time."""
    clock, limits = Clock(), Limits()
    account = Account(limits, clock)
    total = 0.0
    for pause, cost in steps:
        clock.now += max(pause, account.rest)
        assert account.rest == pytest.approx(0, abs=1e-6)
        clock.now += cost
        account.charge(Cost(held=cost, used=cost))
        total += cost
        assert account.rest <= limits.longest_rest + 1e-6
        assert total <= limits.allowance + limits.forgiven * clock.now + 0.5 + 1e-6


def test_everything_is_forgiven_in_time() -> None:
    """A pod that was slow once is an ordinary one again."""
    clock = Clock()
    account = Account(Limits(), clock)
    account.charge(Cost(held=1000, used=1000))
    assert not account.cheap
    assert account.rest == pytest.approx(60)
    clock.now = 360
    assert account.cheap
    assert account.rest == 0
    clock.now = 361
    assert account.settled
