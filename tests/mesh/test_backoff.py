"""How long is waited before the next try."""

from nodeagent.mesh.backoff import FIRST, LONGEST, Backoff


def test_backoff() -> None:
    """Retries go from 5 ms to 5 s, never more, with jitter, and start over after a success."""
    backoff = Backoff()
    delays = [backoff.delay() for _ in range(20)]
    assert FIRST / 2 <= delays[0] <= FIRST
    assert all(LONGEST / 2 <= delay <= LONGEST for delay in delays[-5:])
    assert len(set(delays)) == len(delays)
    backoff.reset()
    assert backoff.delay() <= FIRST
