"""Which variant of iptables a node uses, by its host's rules."""

from pathlib import Path

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.netfilter.iptables_programs import Variant, restore
from nodeagent.netfilter.iptables_variant import find_variant, has_rules_of_others
from nodeagent.netfilter.rule import Family
from tests.lab.pod import Pod
from tests.lab.xtables import NO_TABLE, break_programs, inside

pytestmark = pytest.mark.usefixtures("xtables_lock")


@pytest.mark.parametrize(
    ("statements", "expected"),
    [
        (":OUTPUT ACCEPT [0:0]", False),
        (":OUTPUT ACCEPT [0:0]\n:ISTIO_POSTRT - [0:0]\n-A POSTROUTING -j ISTIO_POSTRT", False),
        (":OUTPUT ACCEPT [0:0]\n-A OUTPUT -j RETURN", True),
        (":OUTPUT ACCEPT [0:0]\n:KUBE-KUBELET-CANARY - [0:0]", True),
    ],
)
def test_whose_rules_say_what_the_host_uses(statements: str, expected: bool) -> None:
    """L7: neither an empty table, which a look makes, nor our own rules say anything."""
    assert has_rules_of_others(f"*nat\n{statements}\nCOMMIT\n") is expected


@pytest.mark.parametrize("variant", Variant)
def test_what_was_found_out_is_remembered(tmp_path: Path, variant: Variant) -> None:
    """L7: the choice at the next start is the same, whatever the host has by then."""
    (tmp_path / "iptables-variant").write_text(f"{variant}\n")
    assert find_variant(None, str(tmp_path)) is variant


def test_a_forced_variant_is_not_remembered(tmp_path: Path) -> None:
    """A setting that is taken away again leaves no trace."""
    assert find_variant(Variant.LEGACY, str(tmp_path)) is Variant.LEGACY
    assert list(tmp_path.iterdir()) == []


@pytest.mark.fuzz
@given(st.text(max_size=200))
def test_any_listing_is_judged(listing: str) -> None:
    """A listing without a chain or rule is one without others' rules."""
    assert has_rules_of_others(listing) <= any(sign in listing for sign in ("-A ", " - ["))


def test_the_choice_does_not_fail_for_ipv6(
    pod: Pod, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent starts where IPv6's rules cannot be listed, and says which setting is meant."""
    inside(pod, restore, Variant.LEGACY, Family.V6, "*nat\nCOMMIT\n")
    with monkeypatch.context() as patch, structlog.testing.capture_logs() as logs:
        break_programs(tmp_path, patch, "ip6tables", NO_TABLE)
        assert inside(pod, find_variant, None, str(tmp_path)) is Variant.NFT
    assert "AMBIENT_IPV6=false" in logs[0]["event"]
