"""The descriptions of our policy rule and route: one for adding, finding and deleting (L42)."""

import contextlib
import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.linux.netlink import attribute
from nodeagent.linux.policy_routing import lookup, preference
from nodeagent.netfilter.rule import Family
from nodeagent.redirect.routes import (
    LocalRoute,
    PolicyRule,
    destination,
    parse_route,
    parse_rule,
)

READERS = (parse_rule, parse_route, lookup, preference, destination)
RULES = [
    PolicyRule(family, table, protocol)
    for family, table, protocol in itertools.product(Family, (100, 15100), (0, 3, 255))
]
ROUTES = [
    LocalRoute(family, table, protocol)
    for family, table, protocol in itertools.product(Family, (100, 15100), (0, 3, 111))
]

ENTRIES: list[PolicyRule | LocalRoute] = [*RULES, *ROUTES]


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_a_rule_is_read_as_it_is_written(rule: PolicyRule) -> None:
    """L42: what is asked for is what is recognized."""
    assert parse_rule(rule.message()) == rule
    assert lookup(rule.message()) == rule.table
    assert preference(rule.message()) == 32764


@pytest.mark.parametrize("route", ROUTES, ids=repr)
def test_a_route_is_read_as_it_is_written(route: LocalRoute) -> None:
    """L42: likewise, and only our own protocol is a proof."""
    assert parse_route(route.message()) == route
    assert route.marked == (route.protocol == 111)
    assert destination(route.message()) == "default"


@given(
    st.sampled_from(ENTRIES),
    st.integers(1000, 2000),
    st.binary(min_size=1, max_size=20),
)
def test_anything_more_makes_it_anothers(
    entry: PolicyRule | LocalRoute, kind: int, payload: bytes
) -> None:
    """A condition that we do not know, of kernels to come, is one more condition."""
    message = entry.message() + attribute(kind, payload)
    assert parse_rule(message) is None
    assert parse_route(message) is None


messages = st.sampled_from([entry.message() for entry in ENTRIES])


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    data = bytearray(draw(messages))
    for _ in range(draw(st.integers(0, 3))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data[: draw(st.integers(0, len(data)))])


@pytest.mark.fuzz
@given(
    damaged()
    | st.binary(max_size=100)
    | st.binary(min_size=12, max_size=12).flatmap(
        lambda header: st.tuples(st.integers(0, 30), st.binary(max_size=20)).map(
            lambda part: struct.pack("=B", 2) + header[1:] + attribute(*part)
        )
    )
)
def test_any_answer_of_the_kernel_is_read(data: bytes) -> None:
    """What ends early, or says a wrong length, is an ``OSError``."""
    for reader in READERS:
        with contextlib.suppress(OSError):
            reader(data)
