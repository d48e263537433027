"""The agent is ready when every task that took a token has given it back."""

from nodeagent.agent.readiness import Readiness


def test_ready_without_a_task() -> None:
    """Nothing to do is ready."""
    assert Readiness().missing() == []


def test_each_token_counts() -> None:
    """The tasks that are not done are told in their order; a token counts once, and for itself."""
    readiness = Readiness()
    lists, again, chain = (readiness.token(task) for task in ("lists", "lists", "chain"))
    assert readiness.missing() == ["lists", "lists", "chain"]
    lists.done()
    lists.done()
    assert readiness.missing() == ["lists", "chain"]
    chain.done()
    again.done()
    assert readiness.missing() == []
    readiness.token("late")
    assert readiness.missing() == ["late"], "what is begun later keeps it from being ready again"
