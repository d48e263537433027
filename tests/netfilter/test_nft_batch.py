"""Replaying the kernel's own messages, and what the kernel makes of them."""

import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodeagent.mesh.overrides import MAX_INTERFACES
from nodeagent.netfilter import nft_batch as batch
from nodeagent.netfilter.errors import RulesError
from nodeagent.netfilter.nft_state import Tables
from nodeagent.netfilter.scratch import in_scratch_netns
from nodeagent.redirect import nft_rules as nftables
from nodeagent.redirect.nft_backend import read, reference
from nodeagent.redirect.rules import RedirectSpec
from tests.lab.pod import Pod
from tests.lab.spec import spec

NAT, MANGLE, RAW = nftables.TABLE_NAMES[1], nftables.TABLE_NAMES[0], nftables.TABLE_NAMES[2]
FOREIGN = "table ip foreign { chain output { tcp dport 1 counter accept; }; }"

variants = st.builds(
    spec,
    ipv6=st.booleans(),
    dns_capture=st.booleans(),
    bypass_inbound=st.booleans(),
    reroute_interfaces=st.lists(
        st.from_regex(r"[A-Za-z0-9_@=-]{1,15}", fullmatch=True), max_size=3, unique=True
    ).map(tuple),
    keep_open=st.booleans(),
    leaving=st.booleans(),
)


def replayed(*turns: RedirectSpec) -> Tables:
    """What is installed after each of `turns` has taken the place of the one before."""

    def work() -> Tables:
        for turn in turns:
            batch.replace(read(), reference(turn))
        return read()

    return in_scratch_netns(work)


def with_a_bad_rule(wanted: Tables, chain: str, count: int = 1) -> Tables:
    """`wanted`, with rules that the kernel refuses behind those of a `chain` of nat.

    They belong to a chain that is not there.
    """
    table = wanted[NAT]
    good = table.chains["output"].rules[-1]
    bad = good.replace(b"istio-output", b"istio-nowher")
    assert bad != good
    found = table.chains[chain]
    broken = replace(found, rules=(*found.rules, *[bad] * count))
    return {**wanted, NAT: replace(table, chains={**table.chains, chain: broken})}


@contextmanager
def unchanged(pod: Pod) -> Iterator[None]:
    """Everything is as it was, handles and counters included."""
    pod.shell("ip link set eth0 down")  # the kernel's own packets would be counted
    before = pod.shell("nft -a list ruleset")
    yield
    assert pod.shell("nft -a list ruleset") == before


@settings(max_examples=40, deadline=None)
@given(before=variants, wanted=variants)
def test_a_replay_is_what_the_library_makes(before: RedirectSpec, wanted: RedirectSpec) -> None:
    """L23: any variant, in an empty pod or in the place of any other, reads as its reference."""
    assert replayed(wanted) == reference(wanted)
    assert replayed(before, wanted) == reference(wanted)


@pytest.mark.parametrize("wanted", [spec(dns_capture=True), spec(reroute_interfaces=("vm0",))])
def test_a_replay_lists_as_the_text_does(pod: Pod, other: Pod, wanted: RedirectSpec) -> None:
    """L6: nft prints the same for what was replayed and for what it has read itself."""
    pod.run(lambda: batch.replace((), reference(wanted)))
    other.shell("nft -f -", stdin=nftables.render(wanted))
    listing = pod.shell("nft -s list ruleset")
    assert "redirect to :15001" in listing
    assert listing == other.shell("nft -s list ruleset")


def test_as_many_interfaces_as_a_pod_may_name(pod: Pod) -> None:
    """The longest set of rules goes in at once, and others at once in its place."""
    wanted = spec(
        dns_capture=True,
        reroute_interfaces=tuple(f"interface-{n:05}" for n in range(MAX_INTERFACES)),
    )
    pod.run(lambda: batch.replace((), reference(wanted)))
    assert pod.run(read) == reference(wanted)
    pod.run(lambda: batch.replace(nftables.TABLE_NAMES, reference(wanted)))
    assert pod.run(read) == reference(wanted)


@pytest.mark.parametrize("count", [1, 2000], ids=["one", "more than the answers have room for"])
def test_a_refused_rule_changes_nothing(pod: Pod, count: int) -> None:
    """A transaction that fails names its first fault, and leaves what was there to the byte."""
    pod.shell("nft -f -", stdin=FOREIGN)
    pod.run(lambda: batch.replace((), reference(spec())))
    wanted = with_a_bad_rule(reference(spec(dns_capture=True)), "istio-output", count)
    number = len(reference(spec(dns_capture=True))[NAT].chains["istio-output"].rules) + 1
    with (
        unchanged(pod),
        pytest.raises(
            RulesError, match=f"ENOENT.*; at: table {NAT}, chain istio-output, rule {number}$"
        ),
    ):
        pod.run(lambda: batch.replace(nftables.TABLE_NAMES, wanted))


def test_a_table_that_came_in_between_is_not_added_to(pod: Pod) -> None:
    """L7: of two agents that found nothing, the second fails, and no rule is there twice."""
    pod.run(lambda: batch.replace((), reference(spec())))
    with unchanged(pod), pytest.raises(RulesError, match=f"EEXIST; at: table {MANGLE}$"):
        pod.run(lambda: batch.replace((), reference(spec())))


def test_a_table_that_went_in_between_is_no_fault(pod: Pod) -> None:
    """What should go and is gone already stops neither a replacement nor a removal."""
    pod.run(lambda: batch.replace(nftables.TABLE_NAMES, reference(spec())))
    assert pod.run(read) == reference(spec())
    pod.run(lambda: batch.remove(nftables.TABLE_NAMES))
    pod.run(lambda: batch.remove(nftables.TABLE_NAMES))
    assert pod.shell("nft list ruleset") == ""


def test_others_rules_are_left_alone(pod: Pod) -> None:
    """Replacement and removal touch our tables only."""
    pod.shell("nft -f -", stdin=FOREIGN)
    with unchanged(pod):
        pod.run(lambda: batch.replace((), reference(spec(dns_capture=True))))
        pod.run(lambda: batch.replace(nftables.TABLE_NAMES, reference(spec(bypass_inbound=True))))
        pod.run(lambda: batch.remove([MANGLE, NAT, RAW]))


def test_counters_start_at_nothing(pod: Pod) -> None:
    """What the reference or an earlier set of rules has counted is not replayed."""
    pod.run(lambda: batch.replace((), reference(spec())))
    with pod.socket(kind=socket.SOCK_DGRAM) as sender:
        sender.sendto(b"count me", ("127.0.0.1", 9))
    listing = pod.shell(f"nft list table inet {MANGLE}")
    assert "jump istio-output" in listing
    assert "packets 0 bytes 0 jump istio-output" not in listing
    pod.shell("ip link set eth0 down", "ip link set lo down")
    have = pod.run(read)
    pod.run(lambda: batch.replace(have, have))
    assert "packets 0 bytes 0 jump istio-output" in pod.shell(f"nft list table inet {MANGLE}")


def test_a_message_without_sense_is_refused() -> None:
    """A message that the kernel cannot read fails, and is not waited for."""
    with pytest.raises(RulesError, match=errno.errorcode[errno.EINVAL]):
        in_scratch_netns(
            lambda: batch.replace(
                (), {"t": replace(reference(spec())[NAT], settings=b"", comment=b"")}
            )
        )
