"""What a pod's annotation says, where the watch and the agent tell of it in any order."""

import pytest

from nodeagent.mesh.annotation import PodAnnotation, Redirection
from nodeagent.mesh.pod import REDIRECTION, Pod
from tests.mesh.pods import a_pod


def annotated(value: str | None) -> Pod:
    return a_pod(annotations={} if value is None else {REDIRECTION: value})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (None, None),
        ("pending", Redirection.PENDING),
        ("enabled", Redirection.ENABLED),
        ("ENABLED", None),
        ("", None),
    ],
)
def test_first_sight(text: str | None, value: Redirection | None) -> None:
    """A value that is not one of the two says nothing."""
    annotation = PodAnnotation(annotated(text))
    assert annotation.value is value
    assert annotation.was_set is (value is not None)
    assert annotation.says_enabled is (value is Redirection.ENABLED)


def test_what_was_said_before_is_no_news() -> None:
    """The pod as it was before the agent's own report, seen once more, changes nothing."""
    annotation = PodAnnotation(annotated(None))
    annotation.reported(Redirection.ENABLED)
    annotation.seen(annotated(None), anew=False)
    assert annotation.value is Redirection.ENABLED


def test_late_echo_leaves_enabled_standing() -> None:
    """L41: `pending`, which the watch brings late, is taken note of, and takes nothing back."""
    annotation = PodAnnotation(annotated(None))
    annotation.reported(Redirection.PENDING)
    annotation.reported(Redirection.ENABLED)
    annotation.seen(annotated("pending"), anew=False)
    assert annotation.value is Redirection.PENDING
    assert annotation.says_enabled


def test_pod_that_leaves_promises_nothing() -> None:
    """Once it was reported that the pod is out, `enabled` has to be earned anew."""
    annotation = PodAnnotation(annotated("enabled"))
    annotation.reported(None)
    assert not annotation.says_enabled
    assert annotation.was_set


def test_pod_that_comes_back() -> None:
    """What was on its way to the cluster for a pod that was gone has been dropped."""
    annotation = PodAnnotation(annotated(None))
    annotation.reported(Redirection.PENDING)
    annotation.seen(annotated(None), anew=True)
    assert annotation.value is None
