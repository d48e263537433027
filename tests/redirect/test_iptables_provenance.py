"""Only what is proven to be ours, or Istio's ambient agent's, is removed (L30)."""

import pytest

from nodeagent.netfilter.errors import RulesError
from nodeagent.netfilter.iptables_programs import Variant, restore
from nodeagent.netfilter.rule import Family
from nodeagent.redirect import in_pod
from nodeagent.redirect.backend import Backends, Swept
from nodeagent.redirect.iptables_backend import IptablesBackend
from tests.lab.pod import Pod
from tests.lab.strangers import NAT, STRANGERS, everything, sidecar
from tests.lab.xtables import ISTIO, ISTIO_TPROXY, SPEC, inside, listing

CHOICES = [None, *Variant]
MANGLE = "inet istio-ambient-mangle"
FAMILIES = list(Family)

pytestmark = pytest.mark.usefixtures("xtables_lock")


@pytest.mark.parametrize("chosen", CHOICES, ids=str)
@pytest.mark.parametrize("stranger", STRANGERS)
def test_what_is_not_proven_is_not_touched(pod: Pod, stranger: str, chosen: Variant | None) -> None:
    """L30: neither a look, a sweep nor a removal takes anything of a pod that is not ours."""
    STRANGERS[stranger](pod)
    before = everything(pod)
    backends = Backends.choose(chosen)
    assert not inside(pod, in_pod.is_installed, backends)
    assert inside(pod, backends.leftovers) == ()
    assert inside(pod, backends.sweep) == Swept()
    assert inside(pod, in_pod.remove, backends) == ()
    assert everything(pod) == before


@pytest.mark.parametrize("variant", Variant)
def test_a_sidecars_chain_is_not_taken_over(pod: Pod, variant: Variant) -> None:
    """L30: where a sidecar's chain is in the place of ours the enrollment fails, by its name."""
    sidecar("redirect", variant)(pod)
    before = listing(pod, variant)
    backend = IptablesBackend(variant)
    for _ in range(2):
        with pytest.raises(RulesError, match=r"IPv4 table nat: chain ISTIO_OUTPUT.* somebody"):
            inside(pod, backend.ensure, SPEC)
    assert listing(pod, variant) == before


@pytest.mark.parametrize(
    ("stranger", "chosen"),
    [
        (stranger, chosen)
        for stranger in ("sidecar-nft", "sidecar-legacy", "tproxy")
        for chosen in CHOICES
        if stranger != f"sidecar-{chosen}"  # such a pod is not enrolled: see above
    ],
    ids=str,
)
def test_a_sweep_beside_our_rules_spares_others(
    pod: Pod, stranger: str, chosen: Variant | None
) -> None:
    """L30: what is beside rules of ours is not ours for that."""
    STRANGERS[stranger](pod)
    before = everything(pod)
    backends = Backends.choose(chosen)
    inside(pod, backends.chosen.ensure, SPEC)
    inside(pod, backends.sweep)
    assert inside(pod, backends.chosen.remove)
    assert without_empty(everything(pod)) == without_empty(before)


def without_empty(text: str) -> list[str]:
    """Leave out what iptables' built-in chains and tables amount to: they cannot be unmade."""
    return [line for line in text.splitlines() if " -j " in line or "jump" in line or "dev" in line]


@pytest.mark.parametrize("variant", Variant)
def test_rules_of_ours_are_known_without_their_mark(pod: Pod, variant: Variant) -> None:
    """L1: what a pod's owner does to the mark keeps nothing of ours in a pod that leaves."""
    backend = IptablesBackend(variant)
    inside(pod, backend.ensure, SPEC)
    for program in ("iptables", "ip6tables"):
        for table in ("nat", "mangle", "raw"):
            for chain in ("ISTIO_OUTPUT", "ISTIO_PRERT"):
                pod.shell(f"{program}-{variant} -t {table} -D {chain} 1")
    assert inside(pod, backend.remove)
    for family in Family:
        assert "ISTIO" not in listing(pod, variant, family)


@pytest.mark.parametrize("table", [NAT, MANGLE])
def test_a_table_of_ours_is_known_without_its_comment(pod: Pod, table: str) -> None:
    """L30: the others prove whose it is; and alone it is proven by the mark that it uses."""
    inside(pod, in_pod.ensure, SPEC)
    text = "".join(
        line
        for line in pod.shell(f"nft list table {table}").splitlines(keepends=True)
        if "comment" not in line
    )
    pod.shell(f"nft delete table {table}")
    pod.shell("nft -f -", stdin=text)
    assert inside(pod, in_pod.remove)
    assert pod.shell("nft list ruleset") == ""


@pytest.mark.parametrize("family", FAMILIES, ids=str)
@pytest.mark.parametrize("variant", Variant)
def test_what_istios_agent_left_goes(pod: Pod, variant: Variant, family: Family) -> None:
    """L42: its rules are known by what they are, in each family by itself."""
    inside(pod, restore, variant, family, ISTIO[family])
    backends = Backends.choose(None)
    assert inside(pod, in_pod.is_installed, backends)
    assert inside(pod, in_pod.remove, backends) == (f"rules in iptables-{variant} are not wanted",)
    assert "ISTIO" not in listing(pod, variant, family)


@pytest.mark.parametrize("variant", Variant)
def test_what_an_older_one_left_goes(pod: Pod, variant: Variant) -> None:
    """L42: until 1.23 inbound traffic was taken with TPROXY, in table mangle."""
    inside(pod, restore, variant, Family.V4, ISTIO_TPROXY)
    assert inside(pod, in_pod.remove, Backends.choose(None))
    assert "ISTIO" not in listing(pod, variant)


@pytest.mark.parametrize("variant", Variant)
def test_istios_rules_with_anothers_among_them_stay(pod: Pod, variant: Variant) -> None:
    """L30: exactly its rules; a chain with anything else in it is left to whoever made it."""
    inside(pod, restore, variant, Family.V4, ISTIO[Family.V4])
    pod.shell(f"iptables-{variant} -t nat -A ISTIO_OUTPUT -m owner --uid-owner 1337 -j RETURN")
    assert inside(pod, in_pod.remove, Backends.choose(None))
    left = listing(pod, variant)
    assert "-A OUTPUT -j ISTIO_OUTPUT" in left
    assert "ISTIO_PRERT" not in left
