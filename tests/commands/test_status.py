"""``nodeagent status`` as a person sees it."""

import pytest

from nodeagent.commands.status import table

_WORKLOAD: dict[str, object] = {
    "namespace": "shop",
    "name": "web",
    "uid": "u1",
    "state": "enrolled",
    "reason": "pod matches a=b",
    "detail": "",
    "since": 1000.0,
    "verified": None,
}


def test_the_table_is_for_people() -> None:
    """One line per pod, sorted, with the reason, and nothing a terminal would obey."""
    waiting = {"name": "db", "uid": "u2", "state": "waiting", "detail": "no address\x1b[2J"}
    looked_at = {"verified": 1000.0 + 3 * 3600 - 7}
    text = table([_WORKLOAD | looked_at, _WORKLOAD | waiting], now=1000.0 + 3 * 3600)
    assert text.splitlines() == [
        "POD       UID  ENROLLED?  STATE     WHY                SINCE  VERIFIED",
        r"shop/db   u2   no         waiting   no address\x1b[2J  3h     -",
        "shop/web  u1   yes        enrolled  pod matches a=b    3h     7s ago",
    ]


@pytest.mark.parametrize(
    ("age", "text"), [(-5, "0s"), (119, "119s"), (120, "2m"), (7200, "2h"), (172800, "2d")]
)
def test_ages_are_short(age: int, text: str) -> None:
    """How long a pod has been in its state is told in one unit; a clock set back is no error."""
    assert table([_WORKLOAD], now=1000.0 + age).splitlines()[1].split()[-2] == text
