"""What a pod's annotations change about its redirection."""

from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.mesh.overrides import MAX_INTERFACES, Overrides, pod_overrides
from nodeagent.mesh.pod import LONGEST_ANNOTATION, Pod, PodUID
from nodeagent.redirect.rules import RedirectSpec


def overrides(**annotations: str) -> tuple[Overrides, tuple[str, ...]]:
    names = {
        "bypass_inbound": "ambient.istio.io/bypass-inbound-capture",
        "dns": "ambient.istio.io/dns-capture",
        "interfaces": "istio.io/reroute-virtual-interfaces",
    }
    pod = Pod(
        uid=PodUID("1"),
        name="web",
        namespace="shop",
        annotations={names[key]: text for key, text in annotations.items()},
    )
    return pod_overrides(pod, dns_capture=True)


def test_without_annotations() -> None:
    """A pod that says nothing gets the agent's own settings."""
    assert overrides() == (
        Overrides(bypass_inbound=False, dns_capture=True, reroute_interfaces=()),
        (),
    )


def test_every_override() -> None:
    """Booleans are Go's, interfaces a list in which blanks and repetitions do not count."""
    result, warnings = overrides(bypass_inbound="T", dns="0", interfaces=" tap0, ,net1,tap0")
    assert result == Overrides(
        bypass_inbound=True, dns_capture=False, reroute_interfaces=("tap0", "net1")
    )
    assert warnings == ()


def test_wrong_boolean() -> None:
    """A value that is no boolean is ignored with a warning of pod, annotation and value."""
    result, (warning,) = overrides(dns="yes")
    assert result.dns_capture
    assert all(word in warning for word in ("shop/web", "ambient.istio.io/dns-capture", "'yes'"))


def test_names_that_would_say_more_than_an_interface() -> None:
    """Syntax, wildcards, the loopback and overlong names never come near a rule."""
    result, (warning,) = overrides(interfaces='eth*,tap+,a"b,lo,..,a/b,a b,sixteen-bytes-xx,ok0')
    assert result.reroute_interfaces == ("ok0",)
    assert "eth*" in warning


def test_thousand_interfaces() -> None:
    """Rules are bounded, whatever the annotation asks for, and so are the warnings."""
    result, warnings = overrides(interfaces=",".join(f"tap{n}" for n in range(1000)))
    assert len(result.reroute_interfaces) == MAX_INTERFACES
    assert len(warnings) == 1


def test_annotation_of_250_kilobytes() -> None:
    """L34: only the beginning is read, a name that was cut in two is none, and the rest is told."""
    names = ",".join(f"tap{n:04}" for n in range(31_000))
    result, (warning,) = overrides(interfaces=names)
    assert result.reroute_interfaces == tuple(f"tap{n:04}" for n in range(MAX_INTERFACES))
    assert "only the first 64" in warning
    result, (warning,) = overrides(interfaces="," * LONGEST_ANNOTATION + "tap0")
    assert result.reroute_interfaces == ()
    assert "4096 characters" in warning
    cut = "," * (LONGEST_ANNOTATION - 3) + "tap0"
    assert overrides(interfaces=cut)[0].reroute_interfaces == ()
    assert overrides(interfaces=cut[:LONGEST_ANNOTATION])[0].reroute_interfaces == ()


def test_annotation_is_read_once() -> None:
    """L34: looks at a pod whose annotation is the same do not take it apart again."""
    text = ",".join(f"vm{n}" for n in range(40))
    first, _ = overrides(interfaces=text)
    assert overrides(interfaces=text)[0].reroute_interfaces is first.reroute_interfaces


@pytest.mark.fuzz
@given(st.text(max_size=60))
def test_any_text_makes_a_rule_set(text: str) -> None:
    """Whatever a tenant writes, what is let through is fit for a rule."""
    result, _ = overrides(interfaces=text, dns=text, bypass_inbound=text)
    RedirectSpec(
        ipv6=True,
        dns_capture=result.dns_capture,
        bypass_inbound=result.bypass_inbound,
        reroute_interfaces=result.reroute_interfaces,
        probe_v4=IPv4Address("10.0.0.1"),
        probe_v6=IPv6Address("fd00::1"),
    )
