"""``nodeagent history`` as a person sees it."""

from nodeagent.commands.history import lines
from nodeagent.commands.terminal import Terminal


def _record(name: str, *transitions: tuple[float, str, str, int]) -> dict[str, object]:
    return {
        "namespace": "shop",
        "name": name,
        "uid": f"uid-{name}",
        "transitions": [
            {"first": first, "last": first + times - 1, "times": times, "what": what, "why": why}
            for first, what, why, times in transitions
        ],
    }


_RECORDS = [
    _record("web", (2.0, "enrolled", "pod matches a=b", 1), (60.0, "repaired", "r\x07", 2)),
    _record("db", (1.0, "waiting", "", 1)),
]


def test_in_the_order_of_time() -> None:
    """One line each, and how often something has happened in succession."""
    assert lines(_RECORDS, Terminal()).splitlines() == [
        "1970-01-01T00:00:01Z  shop/db   waiting",
        "1970-01-01T00:00:02Z  shop/web  enrolled  pod matches a=b",
        "1970-01-01T00:01:00Z  shop/web  repaired  r\\x07 (2 times, last at 1970-01-01T00:01:01Z)",
    ]
    assert lines([], Terminal()) == ""


def test_forty_columns() -> None:
    """A narrow terminal has all of it, below each other."""
    text = lines(_RECORDS, Terminal(40))
    assert max(map(len, text.splitlines())) <= 40
    assert "pod matches a=b" in text
