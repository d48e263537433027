"""The reader of iptables-legacy's tables."""

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.netfilter.errors import RulesError
from nodeagent.netfilter.iptables_legacy import parse
from nodeagent.netfilter.rule import Family, Hook
from tests.netfilter.damage import damaged

NAMES = {Hook.PREROUTING: "ISTIO_PRERT", Hook.OUTPUT: "ISTIO_OUTPUT"}
PLACES = dict.fromkeys(Hook, (0, 200))


def entry(size: int, target: bytes) -> bytes:
    """An entry of iptables-legacy without conditions, in IPv4."""
    return bytes(88) + struct.pack("=HH", 112, 112 + size) + bytes(20) + target


def standard(verdict: int) -> bytes:
    return entry(40, struct.pack("=H30xi4x", 40, verdict))


def head(name: bytes) -> bytes:
    return entry(64, struct.pack("=H29sB30s2x", 64, b"ERROR", 0, name))


TABLE = b"".join(
    (
        standard(480),  # in OUTPUT: to the first rule of the chain
        standard(-2),
        head(b"ISTIO_OUTPUT"),
        standard(-5),
        standard(-5),
        head(b"ERROR"),
    )
)


def test_a_legacy_table_is_read() -> None:
    """What is damaged below is understood when it is whole."""
    found = parse(Family.V4, TABLE, dict.fromkeys(Hook, (0, 152)), NAMES)
    assert list(found) == [Hook.OUTPUT]
    assert found[Hook.OUTPUT].jumps == (1,)
    assert len(found[Hook.OUTPUT].rules) == 1
    assert not found[Hook.OUTPUT].held


@pytest.mark.fuzz
@given(st.sampled_from(list(Family)), damaged(st.just(TABLE)) | st.binary(max_size=500))
def test_any_legacy_table_is_read(family: Family, data: bytes) -> None:
    """A table of another form is a `RulesError`."""
    with contextlib.suppress(RulesError):
        parse(family, data, PLACES, NAMES)
