"""What strangers can bring into the readers of listings and of the kernel's answers.

Only the room's own exceptions come out, and no input makes a reader go on for ever.
"""

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.linux.netlink import Attributes, attribute, attributes
from nodeagent.netfilter.errors import RulesError
from nodeagent.netfilter.iptables_legacy import parse
from nodeagent.netfilter.iptables_save import find_chains, statements
from nodeagent.netfilter.iptables_variant import has_rules_of_others
from nodeagent.netfilter.nft_state import leads_to
from nodeagent.netfilter.rule import Family, Hook
from nodeagent.probes.iptables_rules import parse_chain
from nodeagent.redirect.iptables_rules import CHAINS

HOOKS = {hook.upper(): name for hook, name in CHAINS.items()}
PLACES = dict.fromkeys(Hook, (0, 200))

pieces = st.sampled_from(
    [
        *("*nat\n", "*mangle\n", "*", "COMMIT\n", "\n", " ", '"', "\\", "-A ", "-j ", "-g ", ":"),
        *("OUTPUT", "PREROUTING", "ISTIO_OUTPUT", "ISTIO_PRERT", "ISTIO_POSTRT", " - [0:0]\n"),
        *("-A OUTPUT -j ISTIO_OUTPUT\n", ":ISTIO_OUTPUT - [0:0]\n", "-m comment --comment "),
    ]
)
listings = st.lists(pieces | st.text(max_size=5), max_size=60).map("".join)


@pytest.mark.fuzz
@given(listings)
def test_any_listing_is_read(listing: str) -> None:
    """No text is changed, and what is found of ours was written by somebody."""
    assert listing.startswith("\n".join(statements(listing)))
    for chains in find_chains(listing, HOOKS).values():
        for name, chain in chains.items():
            assert f":{name} " in listing
            assert all(rule in listing for rule in chain.rules)
    parse_chain(listing)
    has_rules_of_others(listing)


@st.composite
def damaged(draw: st.DrawFn, good: st.SearchStrategy[bytes]) -> bytes:
    """Bytes that were good once, cut off or changed anywhere."""
    data = bytearray(draw(good))
    for _ in range(draw(st.integers(0, 3))):
        if data:
            data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data[: draw(st.integers(0, len(data)))])


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
    found = parse(Family.V4, TABLE, dict.fromkeys(Hook, (0, 152)), CHAINS)
    assert list(found) == [Hook.OUTPUT]
    assert found[Hook.OUTPUT].jumps == (1,)
    assert len(found[Hook.OUTPUT].rules) == 1
    assert not found[Hook.OUTPUT].held


@pytest.mark.fuzz
@given(st.sampled_from(list(Family)), damaged(st.just(TABLE)) | st.binary(max_size=500))
def test_any_legacy_table_is_read(family: Family, data: bytes) -> None:
    """A table of another form is a `RulesError`."""
    with contextlib.suppress(RulesError):
        parse(family, data, PLACES, CHAINS)
