"""The reader of nftables' rules, with damaged answers."""

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.linux.netlink import Attributes, attribute, attributes
from nodeagent.netfilter.nft_state import leads_to
from tests.netfilter.damage import damaged


def nested(kind: int, *parts: bytes) -> bytes:
    return attribute(kind, b"".join(parts))


VERDICT = nested(2, attribute(1, struct.pack(">i", -3)), attribute(2, b"ISTIO_OUTPUT\0"))
IMMEDIATE = nested(
    1,
    attribute(1, b"immediate\0"),
    nested(2, attribute(1, b"\0\0\0\0"), nested(2, VERDICT)),
)
JUMP = nested(4, nested(1, attribute(1, b"counter\0")), IMMEDIATE)


def test_a_jump_is_read() -> None:
    """What is damaged below is understood when it is whole."""
    assert leads_to(JUMP) == ("ISTIO_OUTPUT", True)


@pytest.mark.fuzz
@given(damaged(st.just(JUMP)) | st.binary(max_size=200))
def test_any_answer_of_netlink_is_read(data: bytes) -> None:
    """An answer that ends early, or says a wrong length, is an ``OSError``."""
    with contextlib.suppress(OSError):
        found = list(attributes(data))
        assert sum(4 + len(payload) for _, payload in found) <= len(data)
    with contextlib.suppress(OSError):
        Attributes(data)[4]
    with contextlib.suppress(OSError):
        leads_to(data)
