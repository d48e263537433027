"""What a look at iptables' rules costs, and what it does where IPv6 cannot be had."""

import shlex
import time
from dataclasses import replace
from pathlib import Path

import pytest
import structlog

from nodeagent.netfilter.errors import RulesError
from nodeagent.netfilter.iptables_programs import Variant, restore
from nodeagent.netfilter.iptables_variant import find_variant
from nodeagent.netfilter.rule import Family
from nodeagent.redirect import in_pod
from nodeagent.redirect.backend import Backends, Swept
from nodeagent.redirect.iptables_backend import IptablesBackend
from nodeagent.redirect.rules import RedirectSpec
from tests.lab.lab import Lab
from tests.lab.pod import Pod
from tests.lab.xtables import SPEC, inside, listing

MANY = 10_000
NO_TABLE = "ip6tables v1.8.9 (legacy): can't initialize ip6tables table `nat': Table does not exist"
NO_FAMILY = "ip6tables v1.8.9: can't initialize: Address family not supported by protocol"


@pytest.fixture(autouse=True)
def _lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # /run is not ours to write to where the tests run without root.
    monkeypatch.setenv("XTABLES_LOCKFILE", str(tmp_path / "xtables.lock"))


@pytest.fixture(params=Variant)
def variant(request: pytest.FixtureRequest) -> Variant:
    return Variant(request.param)


def break_programs(
    directory: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, message: str
) -> None:
    """Let the programs of that name say `message` and fail."""
    for variant in Variant:
        for action in ("", "-save", "-restore"):
            program = directory / f"{pattern}-{variant}{action}"
            program.write_text(
                f"#!/bin/sh\ncat >/dev/null\necho {shlex.quote(message)} >&2\nexit 3\n"
            )
            program.chmod(0o755)
    path = f"{directory}:/usr/sbin:/sbin:/usr/bin:/bin"
    monkeypatch.setenv("PATH", path)


def add_many(pod: Pod, variant: Variant) -> None:
    """What a tenant may put beside our rules: behind our jump, and in chains of its own."""
    rules = "".join(f"-A TENANT -p tcp -m tcp --dport {n} -j RETURN\n" for n in range(1, MANY))
    rules += "".join(f"-A OUTPUT -p udp -m udp --dport {n} -j TENANT\n" for n in range(1, MANY))
    inside(pod, restore, variant, Family.V4, f"*nat\n:TENANT - [0:0]\n{rules}COMMIT\n")


def test_a_look_runs_no_program(
    pod: Pod, variant: Variant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """L36: a look at rules that are right, or at a pod without any, asks the kernel itself."""
    backend = IptablesBackend(variant)
    inside(pod, backend.ensure, SPEC)
    inside(pod, backend.inspect, SPEC)  # what should stand is tried out once
    other = IptablesBackend(next(each for each in Variant if each is not variant))
    with monkeypatch.context() as patch:
        for pattern in ("iptables", "ip6tables"):
            break_programs(tmp_path, patch, pattern, "run")
        assert inside(pod, backend.inspect, SPEC) == ()
        assert inside(pod, backend.ensure, SPEC) == ()
        assert inside(pod, backend.is_installed)
        assert not inside(pod, other.is_installed)


def test_a_crowd_in_a_chain_with_our_name_runs_no_program(
    pod: Pod, variant: Variant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """L36: what is longer than anything that Istio's agent makes is nobody's of ours, unlisted."""
    rules = "".join(f"-A ISTIO_OUTPUT -p tcp -m tcp --dport {n} -j RETURN\n" for n in range(MANY))
    text = f"*nat\n:ISTIO_OUTPUT - [0:0]\n-A OUTPUT -j ISTIO_OUTPUT\n{rules}COMMIT\n"
    inside(pod, restore, variant, Family.V4, text)
    backends = Backends.choose(None)
    with monkeypatch.context() as patch:
        break_programs(tmp_path, patch, "iptables", "run")
        assert inside(pod, backends.sweep) == Swept()
        assert not inside(pod, in_pod.is_installed, backends)
    assert listing(pod, variant).count("-A ISTIO_OUTPUT") == MANY


def cost(pod: Pod, backend: IptablesBackend) -> float:
    """Processor seconds of a look; the kernel's part is in it."""

    def looks() -> float:
        def look() -> float:
            started = time.thread_time()
            assert backend.inspect(SPEC) == ()
            return time.thread_time() - started

        return min(look() for _ in range(5))

    return pod.run(looks)


def test_what_others_have_costs_nothing(pod: Pod) -> None:
    """L36: twenty thousand rules of a tenant's do not make a look longer."""
    backend = IptablesBackend(Variant.NFT)
    inside(pod, backend.ensure, SPEC)
    before = cost(pod, backend)
    add_many(pod, Variant.NFT)
    assert cost(pod, backend) < 5 * before


def test_a_crowd_is_no_hindrance(pod: Pod, variant: Variant) -> None:
    """L36: among twenty thousand rules ours are found, mended and removed."""
    add_many(pod, variant)
    backend = IptablesBackend(variant)
    inside(pod, backend.ensure, SPEC)
    assert inside(pod, backend.inspect, SPEC) == ()
    pod.shell(f"iptables-{variant} -t nat -I OUTPUT 1 -j RETURN")
    assert inside(pod, backend.inspect, SPEC) == (
        "IPv4 table nat: chain ISTIO_OUTPUT is jumped to at 2",
    )
    assert inside(pod, backend.ensure, SPEC)
    assert inside(pod, backend.inspect, SPEC) == ()
    assert inside(pod, backend.remove)
    left = listing(pod, variant)
    assert "ISTIO" not in left
    assert left.count("TENANT") == 2 * (MANY - 1) + 1


def test_quiet_rules_of_iptables_are_counted(pod: Pod) -> None:
    """L36: iptables-nft's changes are transactions of nftables; quiet pods are not read again."""
    backends = Backends.choose(Variant.NFT)
    inside(pod, backends.chosen.ensure, SPEC)
    before = inside(pod, backends.fingerprint)
    assert before is not None
    assert inside(pod, backends.fingerprint) == before
    pod.shell("iptables-nft -t nat -F ISTIO_OUTPUT")
    assert inside(pod, backends.fingerprint) != before


def never_tried(directory: Path) -> RedirectSpec:
    """What should stand is tried out once for each kind of pod: this one was not."""
    return replace(SPEC, reroute_interfaces=(f"i{abs(hash(directory)) % 10**12}",))


@pytest.mark.parametrize("message", [NO_TABLE, NO_FAMILY], ids=["no table", "no family"])
def test_without_ip6tables_a_pod_without_ipv6_is_redirected(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variant: Variant, message: str
) -> None:
    """One family's fault stops the other's rules in no way; the setting is named, once."""
    pod = lab.add_pod("v4", ipv6=False)
    backend = IptablesBackend(variant)
    wanted = never_tried(tmp_path)
    with monkeypatch.context() as patch, structlog.testing.capture_logs() as logs:
        break_programs(tmp_path, patch, "ip6tables", f"{message} {tmp_path.name}")
        for _ in range(2):
            inside(pod, backend.ensure, wanted)
        assert inside(pod, backend.inspect, wanted) == ()
    assert "ISTIO_PRERT" in listing(pod, variant)
    [warning] = logs
    assert "AMBIENT_IPV6=false" in warning["event"]
    assert message in warning["reason"]


def test_without_ip6tables_a_pod_with_ipv6_fails_visibly(
    pod: Pod, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variant: Variant
) -> None:
    """It is not taken for redirected; what can be redirected is."""
    backend = IptablesBackend(variant)
    wanted = never_tried(tmp_path)
    with monkeypatch.context() as patch:
        break_programs(tmp_path, patch, "ip6tables", NO_TABLE)
        for _ in range(2):
            with pytest.raises(RulesError, match=r"IPv6 cannot be redirected: .*does not exist"):
                inside(pod, backend.ensure, wanted)
        assert "IPv6 cannot be redirected" in "".join(inside(pod, backend.inspect, wanted))
    assert "ISTIO_PRERT" in listing(pod, variant)
    inside(pod, backend.ensure, wanted)
    assert inside(pod, backend.inspect, wanted) == ()


def test_the_choice_does_not_fail_for_ipv6(
    pod: Pod, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent starts where IPv6's rules cannot be listed, and says which setting is meant."""
    inside(pod, restore, Variant.LEGACY, Family.V6, "*nat\nCOMMIT\n")
    with monkeypatch.context() as patch, structlog.testing.capture_logs() as logs:
        break_programs(tmp_path, patch, "ip6tables", NO_TABLE)
        assert inside(pod, find_variant, None, str(tmp_path)) is Variant.NFT
    assert "AMBIENT_IPV6=false" in logs[0]["event"]
