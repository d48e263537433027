"""What nft makes of the rules as text."""

import subprocess
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodeagent.redirect.nft_rules import render
from nodeagent.redirect.rules import RedirectSpec
from tests.lab.spec import spec

VARIANTS = [
    spec(ipv6=ipv6, dns_capture=dns, bypass_inbound=bypass_inbound, reroute_interfaces=interfaces)
    for ipv6, dns, bypass_inbound, interfaces in product(
        (True, False), (True, False), (True, False), ((), ("vm0", "br-1.2@x=y"))
    )
]


def check(text: str) -> None:
    """Let the program read `text` without doing it."""
    result = subprocess.run(
        ["nft", "--check", "-f", "-"], input=text, text=True, capture_output=True, check=False
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_nft_accepts_every_variant(variant: RedirectSpec) -> None:
    """`nft -f` takes the text of each combination of settings."""
    check(render(variant))


@settings(max_examples=50, deadline=None)
@given(st.text(min_size=1, max_size=17))
def test_a_tenants_interface_name_adds_nothing(name: str) -> None:
    """A name is refused, or is in exactly its own four rules, as text that nft accepts."""
    try:
        wanted = spec(reroute_interfaces=(name,))
    except ValueError:
        return
    text = render(wanted)
    assert text.count(f'"{name}"') == 4 + 2 * (name == "lo")
    assert len(text.splitlines()) == len(render(spec(reroute_interfaces=("a",))).splitlines())
    check(text)


@settings(max_examples=30, deadline=None)
@given(st.from_regex(r"[A-Za-z0-9_.@=-]{1,15}", fullmatch=True))
def test_real_interface_names_are_taken_literally(name: str) -> None:
    """What the kernel allows of names without wildcards and quotes can be rerouted."""
    if name not in {".", ".."}:
        check(render(spec(reroute_interfaces=(name,))))
