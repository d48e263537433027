"""Finding what differs in a pod, and repairing it."""

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from nodeagent.netfilter import nft
from nodeagent.netfilter.errors import RulesError
from nodeagent.redirect import nft_rules as nftables
from nodeagent.redirect.in_pod import ensure, inspect, remove
from nodeagent.redirect.rules import RedirectSpec
from tests.lab.counters import counters
from tests.lab.lab import Lab
from tests.lab.pod import Pod
from tests.lab.spec import spec
from tests.lab.standin import MARK, udp_ask, udp_server

WANTED = spec(dns_capture=True, reroute_interfaces=("vm0",))
NAT, MANGLE, RAW = (f"istio-ambient-{table}" for table in ("nat", "mangle", "raw"))


def everything(pod: Pod) -> str:
    """Rules with handles and counters, policy rules and routes, to the byte.

    Without what the kernel adds by itself when it has verified a link-local address.
    """
    return "".join(
        line
        for command in (
            "nft -a list ruleset",
            "ip -4 -details rule",
            "ip -6 -details rule",
            "ip -4 -details route show table all",
            "ip -6 -details route show table all",
        )
        for line in pod.shell(command).splitlines(keepends=True)
        if " fe80::" not in line
    )


def unplug(pod: Pod) -> None:
    """End the kernel's own small talk, such as router solicitations, which counters would show."""
    pod.shell("ip link set eth0 down")


def test_a_fresh_pod_lacks_everything(pod: Pod) -> None:
    """The first set-up says what was missing, and there is nothing to mend after it."""
    before = pod.run(lambda: inspect(WANTED))
    assert before == pod.run(lambda: ensure(WANTED))
    assert "rules are missing" in before
    assert len(before) == 5
    assert pod.run(lambda: inspect(WANTED)) == ()


async def test_what_is_right_is_not_touched(pod: Pod, other: Pod) -> None:
    """L24: a second set-up leaves every byte, handles and counters included."""
    pod.run(lambda: ensure(WANTED))
    async with udp_server(other, other.v4, 53, name="resolver"):
        assert await udp_ask(pod, other.v4, 53, mark=MARK) == "resolver"
    assert any(counters(pod).values())
    unplug(pod)
    before = everything(pod)
    assert pod.run(lambda: ensure(WANTED)) == ()
    assert everything(pod) == before


def _replaced(old: str, new: str) -> Callable[[Pod], object]:
    """Put in rules in which `old` reads `new`."""

    def change(pod: Pod) -> None:
        text = nftables.render(WANTED)
        assert old in text
        pod.run(lambda: nft.apply(text.replace(old, new)))

    return change


def _shell(*commands: str) -> Callable[[Pod], object]:
    return lambda pod: pod.shell(*commands)


def _delete_a_rule(pod: Pod) -> None:
    listing = pod.shell(f"nft -a list chain inet {NAT} istio-output")
    handle = next(line.split()[-1] for line in listing.splitlines() if ":15001" in line)
    pod.shell(f"nft delete rule inet {NAT} istio-output handle {handle}")


@pytest.mark.parametrize(
    ("change", "seen"),
    [
        (_delete_a_rule, f"table {NAT}: chain istio-output: 9 rules instead of 10"),
        (_shell(f"nft flush chain inet {NAT} istio-prerouting"), "0 rules instead of 6"),
        (_shell(f"nft flush table inet {MANGLE}"), "chain output: 0 rules instead of 1"),
        (_shell(f"nft delete table inet {RAW}"), f"table {RAW} is missing"),
        (_shell("nft flush ruleset"), "rules are missing"),
        (_shell(f"nft add rule inet {NAT} istio-output accept"), "11 rules instead of 10"),
        (_shell(f"nft insert rule inet {NAT} output accept"), "2 rules instead of 1"),
        (_shell(f"nft add chain inet {NAT} extra"), "chain extra is not ours"),
        (_shell(f"nft add set inet {NAT} extra {{ type mark ; }}"), "sets or objects"),
        (_shell(f"nft chain inet {MANGLE} output {{ policy drop ; }}"), "policy"),
        (_shell(f"nft add table inet {NAT} {{ flags dormant ; }}"), "other flags"),
        (_replaced("priority -100", "priority -99"), "another type, hook, priority"),
        (_replaced("type route hook", "type filter hook"), "another type, hook, priority"),
        (_replaced("redirect to :15001", "redirect to :15002"), "rule 9 differs"),
        (_replaced("nodeagent layout 1", "nodeagent layout 0"), "another layout version"),
        (_shell("ip rule del pref 32764"), "policy rule for IPv4 is missing"),
        (_shell("ip -6 rule del pref 32764"), "policy rule for IPv6 is missing"),
        (_shell("ip route flush table 100"), "local route for IPv4 is missing"),
        (_shell("ip -6 route flush table 100"), "local route for IPv6 is missing"),
        (
            _shell("ip rule del pref 32764", "ip rule add fwmark 0x111/0xfff pref 99 lookup 100"),
            "policy rule for IPv4 in table 15100 is missing",
        ),
    ],
)
def test_every_difference_is_seen_and_mended(
    pod: Pod, change: Callable[[Pod], object], seen: str
) -> None:
    """L1, L23: whatever was changed is named, and put right without anything else."""
    pod.run(lambda: ensure(WANTED))
    rules = pod.shell("nft -s list ruleset")
    change(pod)
    found = pod.run(lambda: inspect(WANTED))
    assert seen in "; ".join(found)
    assert pod.run(lambda: ensure(WANTED)) == found
    assert pod.run(lambda: inspect(WANTED)) == ()
    assert sorted(pod.shell("nft -s list ruleset").splitlines()) == sorted(rules.splitlines())


def test_the_same_rule_put_back_is_no_difference(pod: Pod) -> None:
    """Handles say who wrote a rule when, not what it does."""
    pod.run(lambda: ensure(WANTED))
    first = pod.shell(f"nft -a -s list chain inet {NAT} istio-output").splitlines()[2]
    rule, handle = first.strip().split(" # handle ")
    pod.shell(
        f"nft delete rule inet {NAT} istio-output handle {handle}",
        f"nft insert rule inet {NAT} istio-output {rule}",
    )
    assert pod.run(lambda: inspect(WANTED)) == ()


def test_only_what_differs_is_written(pod: Pod) -> None:
    """A missing policy rule is no reason to rewrite the rules: their counters stay."""
    pod.run(lambda: ensure(WANTED))
    unplug(pod)
    before = pod.shell("nft -a list ruleset")
    pod.shell("ip rule del pref 32764")
    assert pod.run(lambda: ensure(WANTED)) == ("policy rule for IPv4 is missing",)
    assert pod.shell("nft -a list ruleset") == before


@pytest.mark.parametrize(
    "other_spec",
    [
        spec(),
        spec(dns_capture=True, bypass_inbound=True),
        spec(dns_capture=True, ipv6=False),
        spec(dns_capture=True, reroute_interfaces=("vm1",)),
    ],
    ids=["no DNS", "inbound bypassed", "no IPv6", "another interface"],
)
def test_another_intent(pod: Pod, other_spec: RedirectSpec) -> None:
    """L23: when what is wanted changes, nothing of the old remains, there and back."""
    pod.run(lambda: ensure(WANTED))
    before = pod.shell("nft -s list ruleset")
    assert pod.run(lambda: ensure(other_spec))
    assert pod.run(lambda: inspect(other_spec)) == ()
    assert ("lookup 100" in pod.shell("ip -6 rule")) == other_spec.ipv6
    assert pod.run(lambda: ensure(WANTED))
    assert pod.shell("nft -s list ruleset") == before


FOREIGN = """
table inet foreign {
    chain output { type nat hook output priority -99; tcp dport 1 counter redirect to :2; }
}
table ip istio-ambient-nat {
    chain other { counter accept; }
}
"""


def test_removal_leaves_nothing_of_ours_and_all_of_theirs(pod: Pod) -> None:
    """Rules, policy rules and routes of others are what they were, to the byte."""
    pod.shell("nft -f -", stdin=FOREIGN)
    pod.shell(
        "ip rule add fwmark 0x111/0xfff pref 32763 lookup 100",
        "ip rule add fwmark 0x112/0xfff pref 32764 lookup 100",
        "ip rule add fwmark 0x111 pref 32764 lookup 100",
        "ip -6 rule add fwmark 0x111/0xfff pref 32764 lookup 101",
        "ip route add 198.51.100.0/24 dev eth0 table 100",
        "ip route add default dev lo table 100 metric 77",
        "ip route add local 198.51.101.0/24 dev lo table 100",
    )
    before = everything(pod)
    assert pod.run(remove) == ()
    assert everything(pod) == before
    pod.run(lambda: ensure(WANTED))
    assert pod.run(remove)
    assert everything(pod) == before
    assert pod.run(remove) == ()


def test_removal_does_not_ask_what_was_wanted(pod: Pod) -> None:
    """What an agent with other settings has left goes as well."""
    pod.run(lambda: ensure(WANTED))
    pod.shell("sysctl -qw net.ipv6.conf.lo.disable_ipv6=1", "nft delete table inet " + NAT)
    assert pod.run(remove)
    assert pod.shell("nft list ruleset") == ""
    assert "lookup 100" not in pod.shell("ip rule") + pod.shell("ip -6 rule")


def test_a_refused_transaction_changes_nothing(pod: Pod) -> None:
    """What was there before a commit that fails is there after it, to the byte."""
    pod.run(lambda: ensure(WANTED))
    unplug(pod)
    before = everything(pod)
    text = nftables.render(spec()) + "delete table inet never-was\n"
    with pytest.raises(RulesError, match=r"ENOENT.* at: delete table inet never-was"):
        pod.run(lambda: nft.apply(text))
    assert everything(pod) == before


def test_without_the_capability(pod: Pod) -> None:
    """An agent that may not change the network is told which capability it lacks."""
    program = (
        "from nodeagent.redirect.in_pod import ensure\n"
        "from nodeagent.netfilter.errors import RulesError\n"
        "from tests.lab.spec import spec\n"
        "try:\n    ensure(spec())\n"
        "except RulesError as error:\n    print(error)\n"
    )
    said = subprocess.run(
        ["nsenter", f"--net={pod.path}", "unshare", "--user", sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "EPERM: CAP_NET_ADMIN is missing" in said.stdout, said.stderr
    assert pod.shell("nft list ruleset") == ""


def test_many_foreign_rules(pod: Pod) -> None:
    """10,000 rules of others are neither read nor changed."""
    pod.shell("nft add table inet foreign", "nft add chain inet foreign many")
    for first in range(0, 10_000, 500):  # all in one is too long for a message
        rules = (f"add rule inet foreign many meta mark {first + n} accept" for n in range(500))
        pod.shell("nft -f -", stdin="\n".join(rules))
    pod.run(lambda: ensure(WANTED))
    assert pod.run(lambda: inspect(WANTED)) == ()
    assert pod.run(remove)
    assert pod.shell("nft list ruleset").count("accept") == 10_000


def test_many_pods_at_once(lab: Lab) -> None:
    """L5: pods that are set up, changed and removed in parallel do not meet."""
    pods = [lab.add_pod(f"pod{number}", ipv6=number % 2 == 0) for number in range(8)]

    def live(pod: Pod) -> None:
        for _ in range(5):
            assert pod.run(lambda: ensure(WANTED))
            assert pod.run(lambda: ensure(spec(bypass_inbound=True)))
            assert pod.run(lambda: inspect(spec(bypass_inbound=True))) == ()
            assert pod.run(remove)
            assert pod.run(lambda: inspect(WANTED))

    with ThreadPoolExecutor(len(pods)) as threads:
        list(threads.map(live, pods))


def test_rules_do_not_wait_for_a_route(pod: Pod) -> None:
    """L1: with `lo` down there can be no route; rules are written all the same: it fails closed."""
    pod.shell("ip link set lo down")
    with pytest.raises(RulesError, match="ENETDOWN"):
        pod.run(lambda: ensure(spec()))
    assert all("route" in difference for difference in pod.run(lambda: inspect(spec())))
    pod.shell("ip link set lo up")
    pod.run(lambda: ensure(spec()))
    assert pod.run(lambda: inspect(spec())) == ()


def test_policy_rule_that_is_there_twice(pod: Pod) -> None:
    """A second copy of our policy rule goes; one stays."""
    pod.run(lambda: ensure(spec()))
    # The kernel refuses an exact copy: this one differs in its origin only.
    pod.shell("ip rule add fwmark 0x111/0xfff pref 32764 lookup 100 protocol static")
    assert pod.run(lambda: ensure(spec())) == ("policy rule for IPv4 is there twice",)
    assert pod.shell("ip rule").count("lookup 100") == 1
