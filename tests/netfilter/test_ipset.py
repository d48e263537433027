"""ipsets over plain netlink, against the `ipset` program in a network namespace of its own."""

import contextlib
from collections.abc import Callable
from ipaddress import ip_address

import pytest

from nodeagent.netfilter.errors import RulesError
from nodeagent.netfilter.ipset import Ipsets
from tests.lab.ipsets import IptablesHost, new_iptables_host

V4, V6 = ip_address("10.1.0.1"), ip_address("fd00::1")


def with_sets(host: IptablesHost, work: Callable[[Ipsets], object]) -> object:
    def enter() -> object:
        with contextlib.closing(Ipsets()) as sets:
            return work(sets)

    return host.run(enter)


def test_a_set_is_what_the_program_makes() -> None:
    """A set that is made here is the one that ``ipset create … comment`` makes."""

    def make(sets: Ipsets) -> None:
        for name, version in (("ours4", 4), ("ours6", 6)):
            sets.create(name, version)

    with new_iptables_host() as host:
        with_sets(host, make)
        host.shell(
            "ipset create theirs4 hash:ip comment",
            "ipset create theirs6 hash:ip family inet6 comment",
        )
        for version in "46":
            ours, theirs = (
                with_sets(host, lambda sets, name=name: sets.header(name))  # type: ignore[misc]
                for name in (f"ours{version}", f"theirs{version}")
            )
            assert ours is not None
            assert ours == theirs
        assert with_sets(host, lambda sets: sets.header("nobody's")) is None


def test_elements_come_and_go() -> None:
    """Comments are told and replaced in place; what is deleted twice is no error."""

    def change(sets: Ipsets) -> list[object]:
        sets.create("four", 4)
        sets.create("six", 6)
        sets.add("four", V4, "old")
        sets.add("four", V4, "new")
        sets.add("six", V6, "")
        found: list[object] = [sets.comments("four"), sets.comments("six")]
        for _ in range(2):
            sets.delete("four", V4)
        return [*found, sets.comments("four")]

    with new_iptables_host() as host:
        assert with_sets(host, change) == [{V4: "new"}, {V6: ""}, {}]
        assert "add" not in host.shell("ipset save four")


def test_another_type_has_no_addresses() -> None:
    """A set of another type than ``hash:ip`` is told from ours, and not read."""
    with new_iptables_host() as host:
        host.shell("ipset create ports hash:ip,port", "ipset add ports 10.9.9.9,tcp:80")
        assert with_sets(host, lambda sets: sets.comments("ports")) == {}
        assert with_sets(host, lambda sets: sets.comments("nobody's")) == {}


@pytest.mark.parametrize(
    ("work", "reason"),
    [
        (lambda sets: sets.destroy("used"), "cannot remove ipset used: somebody else's rule"),
        (lambda sets: sets.create("used", 4), "cannot make ipset used: EEXIST"),
        (lambda sets: sets.add("none", V4, ""), f"cannot add {V4} to ipset none: ENOENT"),
    ],
)
def test_a_refusal_says_why(work: Callable[[Ipsets], object], reason: str) -> None:
    """What the kernel refuses is named with the set and the reason."""
    with new_iptables_host() as host:
        host.shell(
            "ipset create used hash:ip comment",
            "iptables-nft -A OUTPUT -m set --match-set used dst -j RETURN",
        )
        with pytest.raises(RulesError, match=reason):
            with_sets(host, work)
