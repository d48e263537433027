"""Booleans as Istio and Kubernetes users write them."""

_TRUE = ("1", "t", "T", "TRUE", "true", "True")
_FALSE = ("0", "f", "F", "FALSE", "false", "False")


def parse_bool(text: str) -> bool:
    """Read `text` as Go's ``strconv.ParseBool`` does: no other spelling, no white space.

    Raises ``ValueError``, which says what is allowed.
    """
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    raise ValueError(f"a boolean is one of {' '.join(_TRUE + _FALSE)}")
