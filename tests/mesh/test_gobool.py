"""Booleans as Go programs read them."""

import pytest

from nodeagent.mesh.gobool import parse_bool


def test_booleans_are_gos() -> None:
    """Exactly the twelve spellings of strconv.ParseBool count."""
    assert all(map(parse_bool, ["1", "t", "T", "TRUE", "true", "True"]))
    assert not any(map(parse_bool, ["0", "f", "F", "FALSE", "false", "False"]))
    for text in ("", "yes", "tRUE", " true", "2", "on"):
        with pytest.raises(ValueError, match="a boolean is one of"):
            parse_bool(text)
