"""What reading iptables' rules costs, whatever others have beside them."""

import time
from pathlib import Path

import pytest

from nodeagent.netfilter.iptables_programs import Variant, restore
from nodeagent.netfilter.rule import Family
from nodeagent.redirect import in_pod
from nodeagent.redirect.backend import Backends, Swept
from nodeagent.redirect.iptables_backend import IptablesBackend
from tests.lab.pod import Pod
from tests.lab.xtables import SPEC, break_programs, inside, listing

MANY = 10_000

pytestmark = pytest.mark.usefixtures("xtables_lock")


@pytest.fixture(params=Variant)
def variant(request: pytest.FixtureRequest) -> Variant:
    return Variant(request.param)


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
    inside(pod, backend.inspect, SPEC)  # what should be there is tried out once
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
